package standard

import (
	"io"
	"io/fs"
	"path"

	"github.com/holdfast-backup/holdfast/fsys"
)

// A sub is a folder of a file system as a file system of its own: several paths of a pool that lose power together.
type sub struct {
	fs  fsys.FS
	dir string
}

func newSub(f fsys.FS, dir string) (fsys.FS, error) { return sub{f, dir}, f.MkdirAll(dir) }

func (s sub) at(name string) string                      { return path.Join(s.dir, name) }
func (s sub) Create(n string) (fsys.File, error)         { return s.fs.Create(s.at(n)) }
func (s sub) Open(n string) (fsys.File, error)           { return s.fs.Open(s.at(n)) }
func (s sub) OpenWrite(n string) (fsys.File, error)      { return s.fs.OpenWrite(s.at(n)) }
func (s sub) Rename(a, b string) error                   { return s.fs.Rename(s.at(a), s.at(b)) }
func (s sub) Link(a, b string) error                     { return s.fs.Link(s.at(a), s.at(b)) }
func (s sub) Remove(n string) error                      { return s.fs.Remove(s.at(n)) }
func (s sub) MkdirAll(n string) error                    { return s.fs.MkdirAll(s.at(n)) }
func (s sub) List(n string) ([]string, error)            { return s.fs.List(s.at(n)) }
func (s sub) Stat(n string) (fs.FileInfo, error)         { return s.fs.Stat(s.at(n)) }
func (s sub) SyncDir(n string) error                     { return s.fs.SyncDir(s.at(n)) }
func (s sub) Lock(n string) (io.Closer, error)           { return s.fs.Lock(s.at(n)) }
func (s sub) Usage(n string) (free, size int64, e error) { return s.fs.Usage(s.at(n)) }
