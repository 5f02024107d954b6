// The model of this package on onnxruntime-web: load() gives a session that is known to be the verified file.
import * as ort from "onnxruntime-web";

const here = (name) => new URL(`./${name}`, import.meta.url);

async function read(name) {
  const url = here(name);
  if (url.protocol === "file:") return new Uint8Array(await (await import("node:fs/promises")).readFile(url));
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  return new Uint8Array(await response.arrayBuffer());
}

const json = async (name) => JSON.parse(new TextDecoder().decode(await read(name)));

export const metadata = () => json("metadata.json");

/** Loads the model, checked against its sha256. `options` are those of ort.InferenceSession.create. */
export async function load(options = {}) {
  const about = await metadata();
  const bytes = await read(about.model.file);
  if (globalThis.crypto?.subtle) { // pages served over plain HTTP have none
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const found = Array.from(digest, (b) => b.toString(16).padStart(2, "0")).join("");
    if (found !== about.model.sha256) throw new Error(`${about.model.file}: sha256 ${found}, expected ${about.model.sha256}`);
  }
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], ...options });
  return new Model(session, about);
}

export class Model {
  constructor(session, about) {
    this.session = session;
    this.metadata = about;
  }

  /** feeds: {input name: typed array, or {data, dims}}; gives {output name: {data, dims}}. */
  async run(feeds) {
    const tensors = {};
    for (const { name, dtype, shape } of this.metadata.inputs) {
      const given = feeds[name];
      if (given === undefined) throw new Error(`input "${name}" is missing`);
      tensors[name] = new ort.Tensor(dtype, given.data ?? given, given.dims ?? shape);
    }
    const outputs = await this.session.run(tensors);
    return Object.fromEntries(Object.entries(outputs).map(([name, t]) => [name, { data: t.data, dims: t.dims }]));
  }

  /** The label (or index) of the largest value of the first output, with its probability after softmax. */
  async classify(feeds) {
    const outputs = await this.run(feeds);
    const scores = Array.from(outputs[this.metadata.outputs[0].name].data, Number);
    const best = scores.indexOf(Math.max(...scores));
    const total = scores.reduce((sum, s) => sum + Math.exp(s - scores[best]), 0);
    return { label: this.metadata.labels[best] ?? String(best), index: best, probability: 1 / total, scores };
  }
}

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array, int16: Int16Array,
  uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array,
  bool: Uint8Array,
};

function decode({ dtype, shape, data }) {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  if (!(dtype in ARRAYS)) throw new Error(`no array of type ${dtype} in JavaScript`);
  return { data: new ARRAYS[dtype](bytes.buffer), dims: shape };
}

/**
 * Runs the golden vectors on this device. Gives {ok, samples, worst: {output: |difference|}, drift}, where drift names
 * the first output that is further off than its tolerance, as {sample, output, difference, tolerance}.
 */
export async function selfTest(options = {}) {
  const [model, golden] = [await load(options), await json("golden.json")];
  const worst = {};
  let drift = null;
  for (const [sample, { inputs, outputs }] of golden.samples.entries()) {
    const feeds = Object.fromEntries(Object.entries(inputs).map(([name, a]) => [name, decode(a)]));
    const got = await model.run(feeds);
    for (const [output, wanted] of Object.entries(outputs)) {
      const { data } = decode(wanted);
      const found = got[output].data;
      let difference = found.length === data.length ? 0 : Infinity;
      for (let i = 0; i < data.length && difference < Infinity; i++) {
        const d = Math.abs(Number(found[i]) - Number(data[i]));
        difference = Number.isNaN(d) ? Infinity : Math.max(difference, d);
      }
      worst[output] = Math.max(worst[output] ?? 0, difference);
      const tolerance = golden.tolerance[output];
      if (difference > tolerance) drift ??= { sample, output, difference, tolerance };
    }
  }
  return { ok: drift === null, samples: golden.samples.length, worst, drift };
}
