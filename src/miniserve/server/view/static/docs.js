// What /openapi.json says, for people: each route, the fields it takes, and what they may be.

const make = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};
const api = await (await fetch("/openapi.json")).json();
const resolve = schema => schema.$ref ? resolve(schema.$ref.slice(2).split("/").reduce((at, key) => at[key], api)) : schema;

// A schema in words: "string or array of integer", and its limits.
function kind(schema) {
  const known = schema.$ref ? null : schema;
  if (!known) return schema.$ref.split("/").at(-1);
  const options = known.anyOf ?? known.oneOf;
  if (options) return options.map(kind).join(" or ");
  if (known.const !== undefined) return JSON.stringify(known.const);
  if (known.enum) return known.enum.map(value => JSON.stringify(value)).join(", ");
  if (known.type === "array") return `array of ${kind(known.items ?? {})}`;
  const limits = [];
  for (const [name, sign] of [["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["exclusiveMaximum", "<"]]) {
    if (known[name] !== undefined) limits.push(`${sign} ${known[name]}`);
  }
  return [known.type ?? "anything", ...limits].join(" ");
}

// The objects that a schema names, itself first, each once.
function objects(schema, found = new Map()) {
  if (schema.$ref) {
    const name = schema.$ref.split("/").at(-1);
    if (found.has(name)) return found;
    found.set(name, resolve(schema));
    objects(resolve(schema), found);
  }
  for (const part of [...(schema.anyOf ?? []), ...(schema.oneOf ?? []), schema.items, schema.additionalProperties,
    ...Object.values(schema.properties ?? {})]) {
    if (part && typeof part === "object") objects(part, found);
  }
  return found;
}

function fields(name, schema, where) {
  const rows = Object.entries(schema.properties).map(([field, of]) => {
    const needed = schema.required?.includes(field), standard = of.default;
    const otherwise = needed ? "required" : standard === undefined || standard === null ? "" : JSON.stringify(standard);
    return make("tr", {}, make("td", {}, make("code", { textContent: field })), make("td", { textContent: kind(of) }),
      make("td", { textContent: otherwise }), make("td", { textContent: of.description ?? "" }));
  });
  const head = make("tr", {}, ...["field", "what it may be", "unless given", ""].map(text => make("th", { textContent: text })));
  const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
  const box = make("div", { className: "alternative", tabIndex: 0, role: "region" }, make("div", {}, table));
  box.setAttribute("aria-label", `Fields of ${name}, ${where}`);
  return [make("h3", { textContent: name }), ...(schema.description ? [make("p", { className: "hint", textContent: schema.description })] : []), box];
}

for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const body = operation.requestBody?.content?.["application/json"]?.schema;
    const title = make("h2", {}, make("code", {}, make("span", { className: "method", textContent: method.toUpperCase() }), path));
    const told = make("p", { textContent: operation.description ?? operation.summary ?? "" });
    const parts = body ? [...objects(body)].filter(([, schema]) => schema.properties).flatMap(([name, schema]) => fields(name, schema, path)) : [];
    const section = make("section", { className: "panel" }, title, told);
    if (parts.length) section.append(make("details", {}, make("summary", { textContent: "Its body" }), ...parts));
    document.querySelector("#api").append(section);
  }
}
document.querySelector("#api").dataset.ready = "";
