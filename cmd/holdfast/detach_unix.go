//go:build unix

package main

import (
	"os/exec"
	"syscall"
)

// detachProcess gives a process a session of its own, so that no terminal's signals reach it.
func detachProcess(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
