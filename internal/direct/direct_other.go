//go:build !linux

package direct

import "os"

// There is no direct I/O here: everything goes the ordinary way.
func reopen(*os.File, int) *os.File { return nil }

func cached(*os.File, []byte, int64) bool { return true }

func readDirect(*os.File, []byte, int64) (int, error) { return 0, os.ErrInvalid }

func writeDirect(*os.File, []byte, int64) (int, error) { return 0, os.ErrInvalid }

func unable(err error) bool { return err != nil }
