// What the page of browser.py does: fetch the job, load, run, time in turns, post what it found.
const ARRAYS = {
  float32: Float32Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array, bool: Uint8Array,
  int8: Int8Array,
};

function decode(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
}

function encode(array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) {
    text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  }
  return btoa(text);
}

function tensors(told) {
  return Object.fromEntries(
    Object.entries(told).map(([name, v]) => [
      name, new ort.Tensor(v.type, new ARRAYS[v.type](decode(v.data)), v.dims),
    ]),
  );
}

async function values(outputs) {
  const found = {};
  for (const [name, t] of Object.entries(outputs)) {
    found[name] = { type: t.type, dims: t.dims, data: encode(await t.getData()) };
  }
  return found;
}

async function main() {
  const job = await (await fetch("/job.json")).json();
  ort.env.wasm.wasmPaths = "/ort/";
  ort.env.wasm.numThreads = job.threads;
  ort.env.logLevel = "error";
  const feeds = job.feeds.map(tensors);
  const answer = {}, sessions = {};
  for (const name of job.models) {
    try {
      const start = performance.now();
      const options = { executionProviders: [job.provider] };
      sessions[name] = await ort.InferenceSession.create(`/models/${name}.onnx`, options);
      answer[name] = { load: performance.now() - start, outputs: [], ms: [] };
      for (const one of feeds) answer[name].outputs.push(await values(await sessions[name].run(one)));
    } catch (error) {
      answer[name] = { failed: String(error.message || error).split("\n")[0].slice(0, 400) };
      delete sessions[name];
    }
  }
  const left = Object.keys(sessions);
  const end = performance.now() + job.seconds * 1000 * left.length;
  while (left.length && performance.now() < end) {
    left.reverse();
    for (const name of left) {
      const start = performance.now();
      const found = await sessions[name].run(feeds[0]);
      for (const t of Object.values(found)) await t.getData();
      answer[name].ms.push(performance.now() - start);
    }
  }
  return answer;
}

main()
  .catch((error) => ({ failed: String(error && error.stack || error).slice(0, 600) }))
  .then((answer) => fetch("/found", { method: "POST", body: JSON.stringify(answer) }));
