package dedup

import (
	"errors"
	"io/fs"
	"strings"
	"syscall"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
)

// A layout is the file system of a pool's folder as its object store sees it. It gives the objects the names they have always had
// in folders (docs/formats/container.md), and it guards the two folders whose absence must never be taken for
// emptiness: they are not removed with their last object, and listing one that is not there is an error.
type layout struct{ fsys.FS }

// Names of objects that are called differently in folders.
const (
	folderSuperblock = "HOLDFAST"
	folderCopy       = "HOLDFAST.copy"
	folderOwner      = "OWNER"
	folderStaging    = "staging"
	storeStaging     = "~staging" // dirstore's
)

func inFolder(name string) string {
	switch name {
	case superblockName:
		return folderSuperblock
	case superblockCopy:
		return folderCopy
	case ownerName:
		return folderOwner
	case storeStaging:
		return folderStaging
	}
	if rest, ok := strings.CutPrefix(name, storeStaging+"/"); ok {
		return folderStaging + "/" + rest
	}
	return name
}

func (l layout) Create(name string) (fsys.File, error)    { return l.FS.Create(inFolder(name)) }
func (l layout) Open(name string) (fsys.File, error)      { return l.FS.Open(inFolder(name)) }
func (l layout) OpenWrite(name string) (fsys.File, error) { return l.FS.OpenWrite(inFolder(name)) }
func (l layout) Rename(from, to string) error             { return l.FS.Rename(inFolder(from), inFolder(to)) }
func (l layout) Link(from, to string) error               { return l.FS.Link(inFolder(from), inFolder(to)) }
func (l layout) MkdirAll(name string) error               { return l.FS.MkdirAll(inFolder(name)) }
func (l layout) Stat(name string) (fs.FileInfo, error)    { return l.FS.Stat(inFolder(name)) }
func (l layout) SyncDir(name string) error                { return l.FS.SyncDir(inFolder(name)) }

func (l layout) Remove(name string) error {
	if name == setsDir || name == containersDir {
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOTEMPTY}
	}
	return l.FS.Remove(inFolder(name))
}

func (l layout) List(name string) ([]string, error) {
	names, err := l.FS.List(inFolder(name))
	if errors.Is(err, fs.ErrNotExist) && (name == setsDir || name == containersDir) {
		return nil, holdfast.Errorf(holdfast.Corrupt, "list "+name, "the pool's folder %q is missing", name).Advise("look whether the pool's disk is mounted")
	}
	return names, err
}
