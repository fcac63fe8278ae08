package agent

import (
	"os/exec"
	"strconv"
)

// ownGroup ends with a command what it started.
func ownGroup(cmd *exec.Cmd) {
	cmd.Cancel = func() error {
		// Whatever taskkill says, the process itself is ended below.
		_ = exec.Command("taskkill.exe", "/T", "/F", "/PID", strconv.Itoa(cmd.Process.Pid)).Run()
		return cmd.Process.Kill()
	}
}
