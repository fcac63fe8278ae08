package s3test

import (
	"os/exec"
	"syscall"
)

// withParent makes the server die with the test, however that ends.
func withParent(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
