//go:build !unix

package main

import "os/exec"

// detachProcess has nothing to do where folders are not mounted.
func detachProcess(*exec.Cmd) {}
