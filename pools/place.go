package pools

import (
	"errors"
	"io/fs"
	"path"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
)

// RemoveTree removes a file or a folder with everything below it, for drivers that destroy a pool. What is not there is no error. A crash in
// between leaves a part of the tree, which another call removes; the removal is durable when it returns.
func RemoveTree(f fsys.FS, name string) error {
	const op = "remove"
	info, err := f.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fsys.Classify(op, err)
	}
	if info.IsDir() {
		names, err := f.List(name)
		if err != nil {
			return fsys.Classify(op, err)
		}
		for _, n := range names {
			if err := RemoveTree(f, path.Join(name, n)); err != nil {
				return err
			}
		}
	}
	if err := f.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fsys.Classify(op, err)
	}
	if path.Dir(name) == "." {
		return fsys.Classify(op, f.SyncDir("."))
	}
	return nil
}

// ScratchFolder names the folder for a scratch pool inside a pool's own: '~' begins no name that a pool uses.
func ScratchFolder(dir, name string) string { return dir + "/~scratch-" + name }

// RemoveFolder removes the folder that f lies in, if it is empty, and says nothing if it is not. parent is the file system of the folder above.
func RemoveFolder(parent fsys.FS, name string) error {
	if names, err := parent.List(name); err != nil || len(names) > 0 {
		return nil
	}
	if err := parent.Remove(name); err != nil {
		return holdfast.Errorf(holdfast.Internal, "remove folder", "%w", err)
	}
	return nil
}
