document.documentElement.classList.add("js");
const fade = document.getElementById("fade");
fade.addEventListener("input", () => document.documentElement.style.setProperty("--photo", fade.value / 100));
const dialog = document.getElementById("zoom");
for (const button of document.querySelectorAll(".maps .stack")) {
  button.disabled = false;
  button.addEventListener("click", () => {
    const large = button.cloneNode(true);
    large.setAttribute("aria-label", "Close");
    large.addEventListener("click", () => dialog.close());
    const title = document.createElement("p");
    title.textContent = button.dataset.title;
    dialog.replaceChildren(title, large);
    dialog.showModal();
  });
}
