//go:build linux

package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/holdfast-backup/holdfast/ingest/chunk"
)

// differing calls each for the blocks of a size in which image b differs from image a, with b's bytes, which it may keep until it returns.
func differing(from, to string, block int, each func(off int64, p []byte) error) error {
	a, err := os.Open(from)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Open(to)
	if err != nil {
		return err
	}
	defer b.Close()
	const piece = 8 << 20
	pa, pb := make([]byte, piece), make([]byte, piece)
	for off := int64(0); ; off += piece {
		n, err := io.ReadFull(io.NewSectionReader(b, off, piece), pb)
		if n == 0 {
			return nil
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			return err
		}
		k, err := a.ReadAt(pa[:n], off)
		if err != nil && err != io.EOF {
			return err
		}
		clear(pa[k:n])
		for at := 0; at < n; at += block {
			end := min(at+block, n)
			if bytes.Equal(pa[at:end], pb[at:end]) {
				continue
			}
			if err := each(off+int64(at), pb[at:end]); err != nil {
				return err
			}
		}
	}
}

// writeChanges lets qemu-io write every 32 KiB block in which the images differ. The bytes go through files in the folder parts.
func writeChanges(from, to, parts, uri string) error {
	if err := os.MkdirAll(parts, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(parts)
	io4 := exec.Command("qemu-io", "-f", "raw", uri)
	in, err := io4.StdinPipe()
	if err != nil {
		return err
	}
	if err := io4.Start(); err != nil {
		return err
	}
	err = differing(from, to, 32<<10, func(off int64, p []byte) error {
		name := filepath.Join(parts, fmt.Sprintf("%x", off))
		if err := os.WriteFile(name, p, 0o600); err != nil {
			return err
		}
		_, err := fmt.Fprintf(in, "write -q -s %s %d %d\n", name, off, len(p))
		return err
	})
	if _, e := fmt.Fprintln(in, "flush\nquit"); err == nil {
		err = e
	}
	_ = in.Close()
	if e := io4.Wait(); err == nil {
		err = e
	}
	return err
}

// ordinary computes what the third day would store with fixed blocks of 4 MiB: the blocks that changed, each once, encoded as Holdfast encodes. Nothing
// is noted where there are no images of the third day.
func ordinary(images string, into map[string]float64) error {
	a2, a3 := filepath.Join(images, "a2.raw"), filepath.Join(images, "a3.raw")
	if _, err := os.Stat(a3); err != nil {
		return nil
	}
	enc, seen := chunk.NewEncoder(chunk.LevelDefault), map[[32]byte]bool{}
	stored, payload := 0, make([]byte, 0, chunk.MaxEncoded)
	err := differing(a2, a3, 4<<20, func(_ int64, p []byte) error {
		if sum := sha256.Sum256(p); seen[sum] {
			return nil
		} else {
			seen[sum] = true
		}
		for at := 0; at < len(p); at += 1 << 20 { // the encoder takes a group at a time
			_, payload = enc.Encode(payload[:0], p[at:min(at+1<<20, len(p))])
			stored += len(payload)
		}
		return nil
	})
	into["fixed-4M bytes"] = float64(stored)
	fmt.Printf("The ordinary day with fixed blocks of 4 MiB: %d blocks, %d MiB stored.\n", len(seen), stored>>20)
	return err
}
