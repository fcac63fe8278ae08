//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly || windows)

package vhdx

import "os"

// openOS opens a file. These systems have no lock that dies with the process in the standard library: the caller keeps
// writers apart.
func openOS(path string, mode openMode) (*os.File, error) {
	switch mode {
	case modeWrite:
		return os.OpenFile(path, os.O_RDWR, 0)
	case modeCreate:
		return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	}
	return os.Open(path)
}

// unlockOS has nothing to do: there is no lock apart from the open file.
func unlockOS(*os.File) error { return nil }

func syncDir(string) error { return nil }

func isNoSpace(error) bool { return false }
