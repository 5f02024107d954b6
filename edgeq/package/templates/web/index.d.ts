import type { InferenceSession } from "onnxruntime-web";

export type Numbers =
  | Float32Array | Float64Array | Int8Array | Uint8Array | Int16Array | Uint16Array
  | Int32Array | Uint32Array | BigInt64Array | BigUint64Array;

export interface Tensor { data: Numbers; dims: readonly number[] }
export interface Interface { name: string; dtype: string; shape: number[] }

export interface Metadata {
  schema_version: 1;
  name: string;
  version: string;
  model: { file: string; sha256: string; bytes: number };
  provider: string;
  target: string;
  inputs: Interface[];
  outputs: Interface[];
  labels: string[];
  quantization: { name: string; dtype: string; scale: number; zero_point: number }[];
  source_sha256: string;
  versions: Record<string, string>;
}

export interface SelfTest {
  ok: boolean;
  samples: number;
  worst: Record<string, number>;
  drift: { sample: number; output: string; difference: number; tolerance: number } | null;
}

export class Model {
  readonly session: InferenceSession;
  readonly metadata: Metadata;
  run(feeds: Record<string, Numbers | Tensor>): Promise<Record<string, Tensor>>;
  classify(feeds: Record<string, Numbers | Tensor>): Promise<{
    label: string; index: number; probability: number; scores: number[];
  }>;
}

export function metadata(): Promise<Metadata>;
export function load(options?: InferenceSession.SessionOptions): Promise<Model>;
export function selfTest(options?: InferenceSession.SessionOptions): Promise<SelfTest>;
