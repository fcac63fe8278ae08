package mount

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// A File is one file of a folder of a set: a disk, or something small.
type File struct {
	Name    string
	Size    int64
	Content io.ReaderAt
	// Allocated returns the parts that may hold data, for SEEK_DATA and SEEK_HOLE; nil: everything is data.
	Allocated func(off, n int64) (holdfast.Extents, error)
}

// FolderOptions steers a Folder.
type FolderOptions struct {
	ID         string       // of the mount, shown by mount(8)
	Time       time.Time    // the files' times: the point in time
	AllowOther bool         // users other than the one that mounts may read
	OnError    func(string) // hears of reads that failed; may be nil
}

// FileNames gives every name that is to be a file's a name of its own: without separators, not hidden, and a number behind those that are there
// already.
func FileNames(names []string) []string {
	out := make([]string, len(names))
	seen := map[string]bool{}
	for i, name := range names {
		name = strings.TrimLeft(strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f || strings.ContainsRune(`/\:`, r) {
				return '_'
			}
			return r
		}, name), ".")
		if name = name[:min(len(name), 200)]; name == "" {
			name = "file"
		}
		to := name
		for n := 2; seen[to]; n++ {
			to = fmt.Sprintf("%s-%d", name, n)
		}
		seen[to] = true
		out[i] = to
	}
	return out
}
