//go:build !linux

package mount

import (
	"runtime"

	"github.com/holdfast-backup/holdfast"
)

// A Folder is a folder that shows files until Close. There are none on this system.
type Folder struct{}

// Show mounts files on a folder; it cannot on this system.
func Show(string, []File, FolderOptions) (*Folder, error) {
	return nil, holdfast.Errorf(holdfast.Unsupported, "mount files", "disks can be shown as files on Linux only, not on %s", runtime.GOOS).
		Advise("mount over NBD instead, with --socket PATH or --listen 127.0.0.1:PORT")
}

// Done is closed when the folder is not mounted any more.
func (*Folder) Done() <-chan struct{} { return nil }

// Close ends the mount.
func (*Folder) Close() error { return nil }

// Release has nothing to give back here.
func Release(string) error { return nil }
