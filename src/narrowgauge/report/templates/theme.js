// The theme: as the system has it until a person says otherwise.

const THEMES = ["system", "dark", "light"];

function startTheme() {
  const button = document.getElementById("theme");
  const show = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  };
  let theme = remembered();
  show(theme);
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    show(theme);
    remember(theme);
  });
}

// A browser may forbid storage to local files; the theme then lasts as long as the page.
function remembered() {
  try {
    const theme = localStorage.getItem("narrowgauge-theme");
    return THEMES.includes(theme) ? theme : "system";
  } catch {
    return "system";
  }
}

function remember(theme) {
  try {
    localStorage.setItem("narrowgauge-theme", theme);
  } catch {
    // see above
  }
}
