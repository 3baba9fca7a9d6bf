// Computes the digest test vectors in Go, from generated messages and from the comments in
// tensor.proto alone. Reads digest_vectors.json from standard input, and writes, for each case,
// what it got: {"case": {"canonical_form": hex, "digest": hex}}.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"log"
	"os"
	"sort"
	"strings"

	"google.golang.org/protobuf/proto"

	inference "twinpath.invalid/digest/gen/inference"
)

type vectorTensor struct {
	Name     string  `json:"name"`
	Datatype string  `json:"datatype"`
	Shape    []int64 `json:"shape"`
	Raw      string  `json:"raw"`
}

type vectorCase struct {
	Case  string         `json:"case"`
	Given []vectorTensor `json:"given"`
}

type result struct {
	CanonicalForm string `json:"canonical_form"`
	Digest        string `json:"digest"`
}

// float is how a floating-point type lies in its bits.
type float struct {
	size     int
	exponent uint64 // all ones here, and something in the mantissa: NaN
	mantissa uint64
	quiet    uint64
}

var floats = map[inference.Datatype]float{
	inference.Datatype_DATATYPE_FP16: {2, 0x7c00, 0x03ff, 0x7e00},
	inference.Datatype_DATATYPE_BF16: {2, 0x7f80, 0x007f, 0x7fc0},
	inference.Datatype_DATATYPE_FP32: {4, 0x7f800000, 0x007fffff, 0x7fc00000},
	inference.Datatype_DATATYPE_FP64: {8, 0x7ff0000000000000, 0x000fffffffffffff, 0x7ff8000000000000},
}

func normalizeRaw(datatype inference.Datatype, raw []byte) {
	if datatype == inference.Datatype_DATATYPE_BOOL {
		for i := range raw {
			if raw[i] != 0 {
				raw[i] = 1
			}
		}
		return
	}
	f, isFloat := floats[datatype]
	if !isFloat {
		return
	}
	for at := 0; at+f.size <= len(raw); at += f.size {
		var padded [8]byte
		copy(padded[:], raw[at:at+f.size])
		bits := binary.LittleEndian.Uint64(padded[:])
		sign := uint64(1) << (8*f.size - 1)
		switch {
		case bits&f.exponent == f.exponent && bits&f.mantissa != 0:
			bits = f.quiet
		case bits == sign: // -0.0
			bits = 0
		}
		binary.LittleEndian.PutUint64(padded[:], bits)
		copy(raw[at:], padded[:f.size])
	}
}

func canonicalForm(input *inference.ModelInput) []byte {
	tensors := input.Tensors
	sort.Slice(tensors, func(i, j int) bool { // Go compares strings by their bytes
		return tensors[i].Name < tensors[j].Name
	})
	var out bytes.Buffer
	write := func(value any) {
		if err := binary.Write(&out, binary.LittleEndian, value); err != nil {
			log.Fatal(err)
		}
	}
	text := func(value string) {
		write(uint32(len(value)))
		out.WriteString(value)
	}
	out.WriteString("twinpath.model-input.v1\x00")
	write(uint32(len(tensors)))
	for _, tensor := range tensors {
		normalizeRaw(tensor.Datatype, tensor.Raw)
		text(tensor.Name)
		text(strings.TrimPrefix(tensor.Datatype.String(), "DATATYPE_"))
		write(uint32(len(tensor.Shape)))
		write(tensor.Shape)
		write(uint64(len(tensor.Raw)))
		out.Write(tensor.Raw)
	}
	return out.Bytes()
}

// message makes the case's model input, and sends it through the wire form once.
func message(given []vectorTensor) (*inference.ModelInput, error) {
	made := &inference.ModelInput{}
	for _, tensor := range given {
		raw, err := hex.DecodeString(tensor.Raw)
		if err != nil {
			return nil, err
		}
		made.Tensors = append(made.Tensors, &inference.Tensor{
			Name:     tensor.Name,
			Datatype: inference.Datatype(inference.Datatype_value["DATATYPE_"+tensor.Datatype]),
			Shape:    tensor.Shape,
			Raw:      raw,
		})
	}
	wire, err := proto.Marshal(made)
	if err != nil {
		return nil, err
	}
	read := &inference.ModelInput{}
	return read, proto.Unmarshal(wire, read)
}

func main() {
	var vectors struct {
		Cases []vectorCase `json:"cases"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&vectors); err != nil {
		log.Fatal(err)
	}
	results := map[string]result{}
	for _, c := range vectors.Cases {
		input, err := message(c.Given)
		if err != nil {
			log.Fatalf("%s: %v", c.Case, err)
		}
		form := canonicalForm(input)
		digest := sha256.Sum256(form)
		results[c.Case] = result{hex.EncodeToString(form), hex.EncodeToString(digest[:])}
	}
	if err := json.NewEncoder(os.Stdout).Encode(results); err != nil {
		log.Fatal(err)
	}
}
