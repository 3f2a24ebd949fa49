"""What engines compute on levels: the record of their kernels, and one file for each arithmetic; numpy only."""
