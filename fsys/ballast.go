package fsys

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"sync"
)

// ballastPieces is the number of files of a ballast, so that part of it can be kept where there is no room for all.
const ballastPieces = 4

// A Ballast is space kept back on a file system for the day it is full: files with real blocks and nothing in them. Removing them takes no
// space and gives room to delete and to collect. Methods are safe for concurrent use.
type Ballast struct {
	fs   FS
	dir  string
	size int64
	mu   sync.Mutex
}

// NewBallast describes a ballast of size bytes in a folder of f. It makes nothing: Keep does.
func NewBallast(f FS, dir string, size int64) *Ballast {
	return &Ballast{fs: f, dir: dir, size: size}
}

// Size returns the bytes of the whole ballast.
func (b *Ballast) Size() int64 { return b.size }

func (b *Ballast) name(i int) string { return path.Join(b.dir, fmt.Sprintf("ballast.%d", i)) }

// Held returns the bytes that are kept back now.
func (b *Ballast) Held() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	sum := int64(0)
	for i := range ballastPieces {
		if _, err := b.fs.Stat(b.name(i)); err == nil {
			sum += b.size / ballastPieces
		}
	}
	return sum
}

// Keep makes the pieces that are missing, as far as the whole ballast's size stays free beside them, and returns the bytes kept back then. A
// piece that does not fit is no error.
func (b *Ballast) Keep() (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	piece := b.size / ballastPieces
	if piece <= 0 {
		return 0, nil
	}
	if err := b.fs.MkdirAll(b.dir); err != nil {
		return 0, Classify("keep space back", err)
	}
	held := int64(0)
	for i := range ballastPieces {
		_, err := b.fs.Stat(b.name(i))
		if errors.Is(err, fs.ErrNotExist) {
			if free, _, uerr := b.fs.Usage(b.dir); uerr != nil || free < b.size+piece {
				return held, nil
			}
			err = b.make(b.name(i), piece)
		}
		if err != nil {
			return held, Classify("keep space back", err)
		}
		held += piece
	}
	return held, nil
}

// make makes one piece. One that is not whole is taken away: it would be taken for a whole one.
func (b *Ballast) make(name string, size int64) error {
	f, err := b.fs.Create(name)
	if err != nil {
		return err
	}
	err = f.Preallocate(size)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return errors.Join(err, b.fs.Remove(name))
	}
	return b.fs.SyncDir(b.dir)
}

// Release gives everything back and returns how many bytes that were. It takes no space.
func (b *Ballast) Release() (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	sum := int64(0)
	for i := range ballastPieces {
		err := b.fs.Remove(b.name(i))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return sum, Classify("give space back", err)
		default:
			sum += b.size / ballastPieces
		}
	}
	if sum == 0 {
		return 0, nil
	}
	return sum, Classify("give space back", b.fs.SyncDir(b.dir))
}
