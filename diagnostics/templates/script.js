"use strict";
// Without this script everything can still be read: commands can be selected, values stand in titles and lists.
document.documentElement.classList.add("js");

function select(node) {
  const range = document.createRange();
  range.selectNodeContents(node);
  const selection = window.getSelection();
  selection.removeAllRanges();
  selection.addRange(range);
}

async function copy(node) {
  try {
    await navigator.clipboard.writeText(node.textContent);
    return true;
  } catch (error) { // no clipboard for pages opened from a file, in some browsers
    select(node);
    return document.execCommand("copy");
  }
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const copied = await copy(button.parentElement.querySelector("code"));
    button.textContent = copied ? "Copied" : "Selected";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

for (const figure of document.querySelectorAll("figure")) {
  const tip = figure.querySelector(".tip");
  const show = (event) => {
    const mark = event.target.closest("[data-tip]");
    if (tip && mark) tip.textContent = mark.dataset.tip;
  };
  figure.addEventListener("mouseover", show);
  figure.addEventListener("click", show);
}
