//go:build !linux && !windows

package fsys

import (
	"os"

	"github.com/holdfast-backup/holdfast"
)

func lockFile(string) (*os.File, error) {
	return nil, holdfast.Errorf(holdfast.Unsupported, "lock", "this build cannot lock files")
}
