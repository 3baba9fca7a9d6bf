// Computes the digest test vectors in Node, from generated messages and from the comments in
// tensor.proto alone. Reads digest_vectors.json from standard input, and writes, for each case,
// what it got: {"case": {"canonical_form": hex, "digest": hex}}.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";

import { Datatype, ModelInputSchema } from "./gen/twinpath/inference/v1/tensor_pb.js";

// How a floating-point type lies in its bits: all ones in `exponent`, and something in
// `mantissa`, is NaN.
const FLOATS = {
  FP16: { size: 2, exponent: 0x7c00n, mantissa: 0x03ffn, quiet: 0x7e00n },
  BF16: { size: 2, exponent: 0x7f80n, mantissa: 0x007fn, quiet: 0x7fc0n },
  FP32: { size: 4, exponent: 0x7f800000n, mantissa: 0x007fffffn, quiet: 0x7fc00000n },
  FP64: {
    size: 8,
    exponent: 0x7ff0000000000000n,
    mantissa: 0x000fffffffffffffn,
    quiet: 0x7ff8000000000000n,
  },
};

function normalized(datatype, bytes) {
  const raw = Buffer.from(bytes); // a copy
  if (datatype === "BOOL") return raw.map((byte) => (byte === 0 ? 0 : 1));
  const float = FLOATS[datatype];
  if (float === undefined) return raw;
  const sign = 1n << BigInt(8 * float.size - 1);
  for (let at = 0; at + float.size <= raw.length; at += float.size) {
    let bits = 0n;
    for (let i = float.size - 1; i >= 0; i--) bits = (bits << 8n) | BigInt(raw[at + i]);
    const isNaN = (bits & float.exponent) === float.exponent && (bits & float.mantissa) !== 0n;
    if (isNaN) bits = float.quiet;
    else if (bits === sign) bits = 0n; // -0.0
    for (let i = 0; i < float.size; i++) raw[at + i] = Number((bits >> BigInt(8 * i)) & 0xffn);
  }
  return raw;
}

function u32(value) {
  const out = Buffer.alloc(4);
  out.writeUInt32LE(value);
  return out;
}

function i64(value) {
  const out = Buffer.alloc(8);
  out.writeBigInt64LE(BigInt(value));
  return out;
}

function text(value) {
  const bytes = Buffer.from(value, "utf8");
  return Buffer.concat([u32(bytes.length), bytes]);
}

function canonicalForm(input) {
  // By the bytes of their names: JavaScript compares strings by UTF-16 units.
  const tensors = [...input.tensors].sort((a, b) =>
    Buffer.compare(Buffer.from(a.name, "utf8"), Buffer.from(b.name, "utf8")),
  );
  const parts = [Buffer.from("twinpath.model-input.v1\0", "ascii"), u32(tensors.length)];
  for (const tensor of tensors) {
    const datatype = Datatype[tensor.datatype];
    const raw = normalized(datatype, tensor.raw);
    parts.push(text(tensor.name), text(datatype), u32(tensor.shape.length));
    parts.push(...tensor.shape.map(i64), i64(raw.length), raw);
  }
  return Buffer.concat(parts);
}

// The case's model input, sent through the wire form once.
function message(given) {
  const made = create(ModelInputSchema, {
    tensors: given.map((tensor) => ({
      name: tensor.name,
      datatype: Datatype[tensor.datatype],
      shape: tensor.shape.map((dimension) => BigInt(dimension)),
      raw: Buffer.from(tensor.raw, "hex"),
    })),
  });
  return fromBinary(ModelInputSchema, toBinary(ModelInputSchema, made));
}

const { cases } = JSON.parse(readFileSync(0, "utf8"));
const results = {};
for (const { case: name, given } of cases) {
  const form = canonicalForm(message(given));
  const digest = createHash("sha256").update(form).digest("hex");
  results[name] = { canonical_form: form.toString("hex"), digest };
}
process.stdout.write(JSON.stringify(results));
