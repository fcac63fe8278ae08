// Package fsys is the house's file system: what pools and the catalog need of one, and no more.
//
// OS is the real one. Mem is a crashable one in memory: after Crash only what was synced (and a random part of what was not)
// is left, so that tests can stop a pool and a catalog at every sync point at the same instant. Fault wraps either and
// fails chosen operations. Names are slash-separated and relative to the file system's root; ".." is refused.
//
// Errors satisfy errors.Is with fs.ErrNotExist, fs.ErrExist and syscall.ENOSPC as the os package's do.
package fsys

import (
	"io"
	"io/fs"
)

// An FS is a tree of files below one root. Methods are safe for concurrent use.
type FS interface {
	// Create makes a new empty file for writing and reading; it fails with fs.ErrExist if the name is taken.
	Create(name string) (File, error)
	// Open opens a file for reading.
	Open(name string) (File, error)
	// OpenWrite opens an existing file for reading and writing in place.
	OpenWrite(name string) (File, error)
	// Rename replaces newname with oldname atomically. Durable after SyncDir of both folders.
	Rename(oldname, newname string) error
	// Link gives the file a second name; fails with fs.ErrExist if newname is taken.
	Link(oldname, newname string) error
	// Remove removes a file or an empty folder. Durable after SyncDir of the folder.
	Remove(name string) error
	// MkdirAll makes a folder and its parents and syncs them, so that the folder is durable when it returns.
	MkdirAll(name string) error
	// List returns the names in a folder, sorted.
	List(name string) ([]string, error)
	// Stat describes a file or folder.
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes the names in a folder durable.
	SyncDir(name string) error
	// Lock takes the exclusive lock that the file name stands for, or fails with an error of kind Busy at once.
	// The lock goes with the process, however it dies.
	Lock(name string) (io.Closer, error)
	// Usage returns the bytes that are free for us and the size of the medium below the folder.
	Usage(name string) (free, size int64, err error)
}

// A File is an open file. ReadAt and WriteAt are safe for concurrent use; Write appends to what Write wrote before.
type File interface {
	io.Reader
	io.Writer
	io.ReaderAt
	io.WriterAt
	io.Closer // a failed Close of a written file is a data-loss error
	// Sync makes the file's bytes and length durable. After an error the file is lost: write it again under a new name.
	Sync() error
	Truncate(size int64) error
	Stat() (fs.FileInfo, error)
	// Preallocate reserves real blocks for [0, size) without changing the length; a no-op where it cannot be done.
	Preallocate(size int64) error
	// DropCache asks the system to forget cached pages of the file, so that a scrub reads the medium. May be a no-op.
	DropCache()
}
