//go:build !linux

package vhdx

import "os"

// punchOS cannot make holes here.
func punchOS(*os.File, int64, int64) bool { return false }

// nextDataOS cannot tell holes from data here.
func nextDataOS(_ *os.File, off, end int64) (start, stop int64) { return off, end }
