// The courses of the queues as charts of uPlot in place of the drawn ones: values under the pointer, a part of the time by
// dragging. Everything on the page is there without this script.
(() => {
  "use strict";
  const courses = JSON.parse(document.getElementById("courses").textContent);
  const color = name => () => getComputedStyle(document.documentElement).getPropertyValue(name);
  const two = digits => String(digits).padStart(2, "0");
  const clock = seconds => {
    const at = new Date(Math.round(seconds * 10) * 100);
    const tenth = at.getUTCMilliseconds() / 100;
    return `${two(at.getUTCHours())}:${two(at.getUTCMinutes())}:${two(at.getUTCSeconds())}${tenth ? "." + tenth : ""}`;
  };
  // Not known is not zero; without a pointer on the chart there is no value.
  const known = (_, value, __, at) => at === null ? "" : value === null ? "?" : String(value);
  const height = 170;
  const widthOf = figure => Math.max(figure.clientWidth, 200);
  const axis = { stroke: color("--faint"), font: "11px system-ui, sans-serif" };
  const lines = { stroke: color("--line"), width: 1 };
  const charts = courses.map((course, number) => {
    const figure = document.getElementById(`course${number}`);
    const chart = new uPlot({
      width: widthOf(figure),
      height,
      cursor: { sync: { key: "courses" }, y: false },
      scales: { depth: { range: () => [0, course.capacity] }, rate: { range: (_, least, most) => [0, most || 1] } },
      axes: [
        { ...axis, space: 80, grid: lines, ticks: lines, values: (_, times) => times.map(clock) },
        { ...axis, scale: "depth", size: 42, grid: lines, ticks: lines, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4] },
        { ...axis, scale: "rate", side: 1, size: 50, grid: { show: false }, ticks: lines },
      ],
      series: [
        { label: "UTC", value: (_, at) => at === null ? "" : clock(at) },
        { label: "depth", scale: "depth", stroke: color("--a"), width: 1.5, value: known },
        { label: "sent/s", scale: "rate", stroke: color("--b"), width: 1.5, dash: [5, 3], value: known },
        { label: "received/s", scale: "rate", stroke: color("--c"), width: 1.5, dash: [1, 3], value: known },
      ],
    }, [course.time.map(after => course.start + after), course.depth, course.sent, course.received], figure);
    figure.classList.add("live");
    return { figure, chart };
  });
  const observer = new ResizeObserver(() => {
    for (const { figure, chart } of charts)
      if (widthOf(figure) !== chart.width) chart.setSize({ width: widthOf(figure), height });
  });
  charts.forEach(({ figure }) => observer.observe(figure));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach(({ chart }) => chart.redraw(false)));
})();
