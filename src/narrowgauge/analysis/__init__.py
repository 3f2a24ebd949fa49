"""What quantization cost and where: metrics, loss split, sensitivity, comparison.

Input: models, plan, statistics, samples. Output: frozen records. It never changes a model or a plan and never
formats text.
"""
