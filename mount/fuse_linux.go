package mount

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/holdfast-backup/holdfast"
)

const (
	fsType    = "holdfast" // mount(8) shows fuse.holdfast
	readAhead = 1 << 20    // the kernel's own, bytes
	keepNames = time.Hour  // the kernel need not ask again for what never changes
)

// A Folder is a folder that shows files until Close.
type Folder struct {
	dir  string
	srv  *fuse.Server
	done chan struct{}
}

// Show mounts files, read-only, on a folder that is there and empty. The caller ends it with Close. What a killed process left mounted there is
// given back first.
func Show(dir string, files []File, o FolderOptions) (*Folder, error) {
	const op = "mount files"
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "%w", err)
	}
	if err := Release(dir); err != nil {
		return nil, err
	}
	if err := emptyDir(dir); err != nil {
		return nil, err
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return nil, holdfast.Errorf(holdfast.Unsupported, op, "%w", err).Advise("load the kernel's fuse module, or mount over NBD with --socket")
	}
	keep := keepNames
	opts := &fs.Options{EntryTimeout: &keep, AttrTimeout: &keep, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	opts.MountOptions = fuse.MountOptions{FsName: "holdfast:" + o.ID, Name: fsType, AllowOther: o.AllowOther, MaxReadAhead: readAhead,
		DisableXAttrs: true}
	if os.Geteuid() == 0 {
		opts.DirectMountStrict = true
		opts.DirectMountFlags = syscall.MS_RDONLY | syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
	} else {
		opts.Options = []string{"ro", "nosuid", "nodev", "noexec"}
	}
	srv, err := fs.Mount(dir, &rootNode{files: files, o: o}, opts)
	if err != nil {
		kind := holdfast.Unsupported
		if errors.Is(err, os.ErrPermission) {
			kind = holdfast.Permission
		}
		return nil, holdfast.Errorf(kind, op, "%w", err).Advise("mounting files needs fuse3 (fusermount3) or root; --socket mounts over NBD")
	}
	f := &Folder{dir: dir, srv: srv, done: make(chan struct{})}
	go func() {
		srv.Wait()
		close(f.done)
	}()
	return f, nil
}

func emptyDir(dir string) error {
	const op = "mount files"
	names, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return holdfast.Errorf(holdfast.NotExist, op, "there is no folder %s", dir).Advise("make it with: mkdir %s", dir)
	case err != nil:
		return holdfast.Errorf(holdfast.Invalid, op, "%w", err)
	case len(names) > 0:
		return holdfast.Errorf(holdfast.Exist, op, "the folder %s is not empty", dir).Advise("name an empty folder")
	}
	return nil
}

// Done is closed when the folder is not mounted any more, whoever ended it.
func (f *Folder) Done() <-chan struct{} { return f.done }

// Close ends the mount. Files that somebody still has open cannot be read any more afterwards.
func (f *Folder) Close() error {
	select {
	case <-f.done:
		return nil
	default:
	}
	if err := f.srv.Unmount(); err != nil { // in use: it goes away when the last user does, and gives errors until then
		if err := detach(f.dir); err != nil {
			return err
		}
		return nil
	}
	<-f.done
	return nil
}

// Release gives a folder back that a killed process left mounted. It does nothing to any other folder.
func Release(dir string) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); !errors.Is(err, syscall.ENOTCONN) {
		return nil
	}
	return detach(dir)
}

// detach takes a mount out of the tree, even if it is in use.
func detach(dir string) error {
	err := syscall.Unmount(dir, syscall.MNT_DETACH)
	if err == nil {
		return nil
	}
	for _, name := range []string{"fusermount3", "fusermount"} {
		if xerr := exec.Command(name, "-u", "-z", dir).Run(); xerr == nil {
			return nil
		}
	}
	return holdfast.Errorf(holdfast.Busy, "unmount", "%s: %w", dir, err).Advise("end it with: umount -l %s", dir)
}

// rootNode is the folder.
type rootNode struct {
	fs.Inode
	files []File
	o     FolderOptions
}

var _ = (fs.NodeOnAdder)((*rootNode)(nil))

// OnAdd makes the files when the folder is mounted.
func (r *rootNode) OnAdd(ctx context.Context) {
	for i := range r.files {
		n := &fileNode{f: &r.files[i], o: &r.o}
		r.AddChild(r.files[i].Name, r.NewPersistentInode(ctx, n, fs.StableAttr{Mode: syscall.S_IFREG, Ino: uint64(i) + 2}), true)
	}
}

// Getattr implements fs.NodeGetattrer.
func (r *rootNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = syscall.S_IFDIR | 0o555
	out.SetTimes(nil, &r.o.Time, &r.o.Time)
	return 0
}

// fileNode is one file.
type fileNode struct {
	fs.Inode
	f *File
	o *FolderOptions
}

// Getattr implements fs.NodeGetattrer.
func (n *fileNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = syscall.S_IFREG | 0o444
	out.Size = uint64(n.f.Size)
	out.Blocks, out.Blksize = uint64(n.f.Size+511)/512, 4096
	out.SetTimes(nil, &n.o.Time, &n.o.Time)
	return 0
}

// Open implements fs.NodeOpener. The kernel may keep what it has read: it never changes.
func (n *fileNode) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

// Read implements fs.NodeReader.
func (n *fileNode) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	k, err := n.f.Content.ReadAt(dest, off)
	if err != nil && !errors.Is(err, io.EOF) {
		if n.o.OnError != nil {
			n.o.OnError(n.f.Name + ": " + err.Error())
		}
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(dest[:k]), 0
}

// Lseek implements fs.NodeLseeker: where data and where a hole begins. The kernel does the other ways of seeking itself.
func (n *fileNode) Lseek(_ context.Context, _ fs.FileHandle, off uint64, whence uint32) (uint64, syscall.Errno) {
	const seekData, seekHole = 3, 4
	at := int64(off)
	if at < 0 || at >= n.f.Size {
		return 0, syscall.ENXIO
	}
	data := holdfast.Extents{{Off: at, Len: n.f.Size - at}}
	if n.f.Allocated != nil {
		var err error
		if data, err = n.f.Allocated(at, n.f.Size-at); err != nil {
			return 0, syscall.EIO
		}
	}
	switch {
	case whence == seekData && len(data) == 0:
		return 0, syscall.ENXIO
	case whence == seekData:
		return uint64(data[0].Off), 0
	case whence == seekHole && len(data) > 0 && data[0].Off == at:
		return uint64(data[0].End()), 0
	case whence == seekHole:
		return off, 0
	}
	return 0, syscall.EINVAL
}
