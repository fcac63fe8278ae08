package dirstore

import (
	"errors"
	"io/fs"
	"path"
	"syscall"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
)

// object is a file in staging, on its way to its name.
type object struct {
	s          *Store
	f          fsys.File
	temp, name string
	err        error // the first failed write: there is a hole, so Commit must not
	done       bool
}

func (o *object) Write(p []byte) (int, error) {
	if o.done {
		return 0, holdfast.Errorf(holdfast.Invalid, "write "+o.name, "the object is committed or aborted")
	}
	if o.err != nil {
		return 0, o.err
	}
	n, err := o.f.Write(p)
	if err != nil {
		o.err = fsys.Classify("write "+o.name, err)
	}
	return n, o.err
}

func (o *object) Commit() error {
	op := "seal " + o.name
	if o.done {
		return holdfast.Errorf(holdfast.Invalid, op, "the object is committed or aborted")
	}
	o.done = true
	err := o.err
	if err == nil {
		err = o.f.Sync()
	}
	if cerr := o.f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = o.place()
		if isNotDir(err) || errors.Is(err, syscall.EISDIR) {
			err = holdfast.Errorf(holdfast.Invalid, op, "an object's name is another's folder: %w", err)
		}
	}
	if err != nil {
		_ = o.s.fs.Remove(o.temp) // garbage that the next Open removes; the first error is the one that counts
		return fsys.Classify(op, err)
	}
	return nil
}

// place gives the synced file its name, durably.
func (o *object) place() error {
	dir := path.Dir(o.name)
	_, err := o.s.fs.Stat(o.name)
	fresh := errors.Is(err, fs.ErrNotExist)
	removed, err := o.rename(dir)
	if err != nil {
		return err
	}
	err = o.s.fs.SyncDir(dir)
	if err == nil && o.s.removedSince(removed) {
		// Between mkdir and rename the folder may have been removed as empty and made again by another, whose sync of the
		// folder above may not be done: do it here.
		o.s.forget()
		_, err = o.s.mkdir(dir)
	}
	if err != nil && fresh { // whether the name survives nobody knows: who looks now must not find it
		_ = o.s.fs.Remove(o.name)
	} // where it was there before, it was so durably and with these bytes
	return err
}

// rename makes the folder and moves the file into it.
func (o *object) rename(dir string) (removed int, err error) {
	for try := 0; ; try++ {
		if removed, err = o.s.mkdir(dir); err != nil {
			return 0, err
		}
		err = o.s.fs.Rename(o.temp, o.name)
		if err == nil || !errors.Is(err, fs.ErrNotExist) || try >= maxFolderTries {
			return removed, err
		}
		o.s.forget() // its last object and then the folder were removed since
	}
}

func (o *object) Abort() {
	if o.done {
		return
	}
	o.done = true
	_ = o.f.Close() // the file is garbage either way
	_ = o.s.fs.Remove(o.temp)
}

// isNotDir reports whether a part of the path that should be a folder is a file.
func isNotDir(err error) bool { return errors.Is(err, syscall.ENOTDIR) }
