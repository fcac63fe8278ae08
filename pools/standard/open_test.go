package standard

import (
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/blob/dirstore"
)

// openDir opens the store of a file system without a lock: a test knows who has it.
func openDir(f fsys.FS) (blob.Store, error) { return dirstore.Open(f, dirstore.Options{}) }
