// Runs one job (see _child.py for its folder) with onnxruntime-web's wasm build, in Node or in a browser's page.
//
//   node _child.mjs FOLDER ORT_MODULE_URL          files are read and written directly
//   a page that calls run(httpFiles(BASE), ORT_URL) files are fetched from, and posted to, a server on loopback

const ARRAYS = {
  f4: ["float32", Float32Array], f8: ["float64", Float64Array], f2: ["float16", Uint16Array],
  i1: ["int8", Int8Array], i2: ["int16", Int16Array], i4: ["int32", Int32Array], i8: ["int64", BigInt64Array],
  u1: ["uint8", Uint8Array], u2: ["uint16", Uint16Array], u4: ["uint32", Uint32Array], u8: ["uint64", BigUint64Array],
  b1: ["bool", Uint8Array],
};
const DESCRIPTIONS = Object.fromEntries(Object.entries(ARRAYS).map(([code, [type]]) => [type, code]));
const LEVELS = { disabled: "disabled", basic: "basic", all: "all" };
const HEADER = 10; // magic, version 1.0 and the length of the text that follows

// The NPY format 1.0, as numpy.lib.format describes it; little-endian and row-major only.
export function parseNpy(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const end = HEADER + view.getUint16(8, true);
  const text = new TextDecoder("latin1").decode(bytes.subarray(HEADER, end));
  const [, code] = text.match(/'descr': '[<|]([a-z]\d)'/) ?? [];
  if (!(code in ARRAYS) || bytes[6] !== 1 || /'fortran_order': True/.test(text)) throw new Error(`unreadable array: ${text}`);
  const shape = text.match(/'shape': \(([^)]*)\)/)[1].split(",").filter((n) => n.trim()).map(Number);
  const [type, Kind] = ARRAYS[code];
  const data = new Kind(bytes.slice(end).buffer); // a copy: the text need not end on a multiple of the element size
  return { type, data, shape };
}

export function formatNpy(type, data, shape) {
  if (!(type in DESCRIPTIONS)) throw new Error(`an output of type ${type} can't be brought back`);
  const code = DESCRIPTIONS[type];
  const sizes = shape.length === 1 ? `${shape[0]},` : shape.join(", ");
  let text = `{'descr': '${code.endsWith("1") ? "|" : "<"}${code}', 'fortran_order': False, 'shape': (${sizes}), }`;
  text = text.padEnd(Math.ceil((text.length + 1 + HEADER) / 64) * 64 - HEADER - 1) + "\n";
  const body = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const bytes = new Uint8Array(HEADER + text.length + body.length);
  bytes.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, text.length & 255, text.length >> 8]);
  bytes.set(new TextEncoder().encode(text), HEADER);
  bytes.set(body, HEADER + text.length);
  return bytes;
}

export async function run(files, ortUrl) {
  const ort = await import(ortUrl);
  const json = async (path) => JSON.parse(new TextDecoder().decode(await files.read(path)));
  const job = await json("job.json");
  ort.env.wasm.numThreads = job.threads;
  const externalData = await Promise.all(job.data.map(async (path) => ({ path, data: await files.read(path) })));
  const options = { executionProviders: ["wasm"], graphOptimizationLevel: LEVELS[job.optimization], externalData };
  const session = await ort.InferenceSession.create(await files.read(job.model), options);
  const times = [];
  for (let sample = 0; sample < job.samples; sample++) {
    const feeds = {};
    for (const [i, name] of job.inputs.entries()) {
      const { type, data, shape } = parseNpy(await files.read(`in/${sample}_${i}.npy`));
      feeds[name] = new ort.Tensor(type, data, shape);
    }
    const began = performance.now();
    const results = await session.run(feeds, job.outputs);
    times.push(performance.now() - began);
    for (const [i, name] of job.outputs.entries()) {
      const { type, data, dims } = results[name];
      await files.write(`out/${sample}_${i}.npy`, formatNpy(type, data, dims));
    }
  }
  times.sort((a, b) => a - b);
  const middle = (times.length - 1) / 2;
  const report = {
    latency_ms: (times[Math.floor(middle)] + times[Math.ceil(middle)]) / 2,
    version: ort.env.versions.web ?? ort.env.versions.common,
    machine: "wasm",
    providers: ["wasm"],
  };
  await files.write("result.json", new TextEncoder().encode(JSON.stringify(report)));
}

export function httpFiles(base) {
  return {
    read: async (path) => {
      const answer = await fetch(base + path);
      if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
      return new Uint8Array(await answer.arrayBuffer());
    },
    write: async (path, bytes) => {
      const answer = await fetch(base + path, { method: "POST", body: bytes });
      if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    },
  };
}

if (typeof process !== "undefined" && process.versions?.node) {
  const { readFile, writeFile } = await import("node:fs/promises");
  const [folder, ortUrl] = process.argv.slice(2);
  const files = {
    read: async (path) => new Uint8Array(await readFile(`${folder}/${path}`)),
    write: (path, bytes) => writeFile(`${folder}/${path}`, bytes),
  };
  await run(files, ortUrl).catch((error) => {
    console.error(String(error?.message ?? error));
    process.exit(1);
  });
}
