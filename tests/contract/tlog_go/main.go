// Reads a log that was published as C2SP tlog-tiles, with Go's own implementation of transparency
// logs: the checkpoint's signature, the tree's root from verified tiles, every record's proof, and
// that the log of an older checkpoint is a prefix of it. Shares no code with the product.
//
//	tlog DIR VKEY [OLD_CHECKPOINT]
package main

import (
	"encoding/binary"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type folder string

func (f folder) Height() int { return 8 }

func (f folder) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range tiles {
		// Go's paths name the tiles' height; C2SP's don't, because it is always 8.
		path := "tile/" + strings.TrimPrefix(tile.Path(), "tile/8/")
		data, err := os.ReadFile(filepath.Join(string(f), path))
		if err != nil {
			return nil, err
		}
		found = append(found, data)
	}
	return found, nil
}

func (f folder) SaveTiles([]tlog.Tile, [][]byte) {}

func tree(file string, verifier note.Verifier) tlog.Tree {
	signed, err := os.ReadFile(file)
	check(err)
	opened, err := note.Open(signed, note.VerifierList(verifier))
	check(err)
	lines := strings.SplitN(opened.Text, "\n", 4)
	var size int64
	_, err = fmt.Sscanf(lines[1], "%d", &size)
	check(err)
	root, err := tlog.ParseHash(lines[2])
	check(err)
	return tlog.Tree{N: size, Hash: root}
}

func entries(dir string, size int64) [][]byte {
	var found [][]byte
	for number := int64(0); int64(len(found)) < size; number++ {
		width := int(min(size-number*256, 256))
		tile := tlog.Tile{H: 8, L: -1, N: number, W: width}
		path := "tile/entries/" + strings.TrimPrefix(tile.Path(), "tile/8/data/")
		data, err := os.ReadFile(filepath.Join(dir, path))
		check(err)
		for len(data) > 0 {
			length := int(binary.BigEndian.Uint16(data))
			found = append(found, data[2:2+length])
			data = data[2+length:]
		}
	}
	return found
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	dir := os.Args[1]
	verifier, err := note.NewVerifier(os.Args[2])
	check(err)
	now := tree(filepath.Join(dir, "checkpoint"), verifier)
	hashes := tlog.TileHashReader(now, folder(dir))
	root, err := tlog.TreeHash(now.N, hashes)
	check(err)
	if root != now.Hash {
		log.Fatal("the tiles have another root than the checkpoint")
	}
	found := entries(dir, now.N)
	for index, entry := range found {
		proof, err := tlog.ProveRecord(now.N, int64(index), hashes)
		check(err)
		check(tlog.CheckRecord(proof, now.N, now.Hash, int64(index), tlog.RecordHash(entry)))
	}
	if len(os.Args) > 3 {
		old := tree(os.Args[3], verifier)
		proof, err := tlog.ProveTree(now.N, old.N, hashes)
		check(err)
		check(tlog.CheckTree(proof, now.N, now.Hash, old.N, old.Hash))
	}
	fmt.Printf("%d records, root %s\n", now.N, root)
}
