const slider = document.getElementById("epoch");
if (slider) {
  const frames = JSON.parse(document.getElementById("frames").textContent);
  const shown = document.querySelectorAll("#epoch-pictures img");
  const turn = () => {
    const frame = frames[slider.value];
    document.getElementById("epoch-name").textContent = frame.name;
    shown.forEach((img, i) => {
      img.parentElement.style.visibility = frame.files[i] ? "visible" : "hidden";
      if (frame.files[i]) img.src = frame.files[i];
    });
  };
  slider.addEventListener("input", turn);
}
