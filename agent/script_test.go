package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

func scriptAgent(t *testing.T) (a *Agent, dir string) {
	t.Helper()
	data := t.TempDir()
	dir = filepath.Join(data, ScriptsFolder)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return &Agent{o: Options{Dir: data, Clock: clock.System}}, dir
}

func place(t *testing.T, name, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
}

// TestOnlyPlacedScriptsRun: whatever a job names, only a plain file of the scripts folder that others cannot write is run.
func TestOnlyPlacedScriptsRun(t *testing.T) {
	a, dir := scriptAgent(t)
	mark := filepath.Join(t.TempDir(), "ran")
	text := "echo yes > " + mark + "\n"
	place(t, filepath.Join(filepath.Dir(dir), "outside"), text, 0o700)
	place(t, filepath.Join(dir, "open"), text, 0o722)
	place(t, filepath.Join(dir, "plain"), text, 0o600) // not executable
	if err := os.Symlink("/bin/sh", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, kind := range map[string]holdfast.Kind{
		"missing": holdfast.NotExist, "../outside": holdfast.Permission, "/bin/sh": holdfast.Permission, "": holdfast.Permission, ".": holdfast.Permission,
		"..": holdfast.Permission, "open": holdfast.Permission, "link": holdfast.Permission, "folder": holdfast.Permission, "a\\b": holdfast.Permission, "c:d": holdfast.Permission,
		"plain": holdfast.Invalid,
	} {
		r := &running{task: wire.Task{Kind: wire.TaskScript, Script: name}}
		if err := a.script(t.Context(), r); !errors.Is(err, kind) {
			t.Errorf("%q: %v, want %v", name, err, kind)
		}
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("one of them ran")
	}
}

// TestScriptsSeeTheRunsFactsAndNothingElse: the environment, the exit code, the end of a long output.
func TestScriptsSeeTheRunsFactsAndNothingElse(t *testing.T) {
	a, dir := scriptAgent(t)
	t.Setenv("SECRET_OF_THE_AGENT", "x")
	place(t, filepath.Join(dir, "env"), "env\npwd\nexit 7\n", 0o700)
	r := &running{task: wire.Task{Kind: wire.TaskScript, Script: "env", Env: map[string]string{"HOLDFAST_JOB": "nightly", "HOLDFAST_VMS": "a b\nc; rm -rf $HOME"}}}
	if err := a.script(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	out := r.report().Script
	if out == nil || out.Exit != 7 || !strings.Contains(out.Output, "HOLDFAST_JOB=nightly") || !strings.Contains(out.Output, "HOLDFAST_VMS=a b\nc; rm -rf $HOME") ||
		strings.Contains(out.Output, "SECRET_OF_THE_AGENT") || !strings.Contains(out.Output, dir) {
		t.Errorf("%+v", out)
	}
	for _, name := range []string{"PATH", "LD_PRELOAD", "HOLDFAST_A=B"} {
		r := &running{task: wire.Task{Kind: wire.TaskScript, Script: "env", Env: map[string]string{name: "x"}}}
		if err := a.script(t.Context(), r); !errors.Is(err, holdfast.Invalid) {
			t.Errorf("the fact %s: %v", name, err)
		}
	}
	place(t, filepath.Join(dir, "long"), "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done\n", 0o700)
	r = &running{task: wire.Task{Kind: wire.TaskScript, Script: "long"}}
	if err := a.script(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if out := r.report().Script.Output; len(out) > maxScriptOutput+8 || !strings.HasSuffix(out, "line 19999\n") || !strings.HasPrefix(out, "…\nline ") {
		t.Errorf("%d bytes of a long output, %.20q to %.20q", len(out), out, out[max(0, len(out)-20):])
	}
}

// TestAScriptIsEndedWithAllItStarted: when its time is over, or the task is cancelled.
func TestAScriptIsEndedWithAllItStarted(t *testing.T) {
	a, dir := scriptAgent(t)
	mark := filepath.Join(t.TempDir(), "late")
	place(t, filepath.Join(dir, "hang"), "(sleep 3; echo x > "+mark+") &\necho begun\nsleep 60\n", 0o700)
	r := &running{task: wire.Task{Kind: wire.TaskScript, Script: "hang", Timeout: 1500 * time.Millisecond}}
	began := time.Now()
	err := a.script(t.Context(), r)
	if !errors.Is(err, holdfast.Offline) || time.Since(began) > 50*time.Second || r.report().Script.Exit != -1 || !strings.Contains(r.report().Script.Output, "begun") {
		t.Errorf("%v after %v: %+v", err, time.Since(began), r.report().Script)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(300*time.Millisecond, func() { cancel(holdfast.Errorf(holdfast.Cancelled, "", "stop")) })
	if err := a.script(ctx, &running{task: wire.Task{Kind: wire.TaskScript, Script: "hang"}}); !errors.Is(err, holdfast.Cancelled) {
		t.Errorf("cancelled: %v", err)
	}
	<-time.After(3200 * time.Millisecond)
	if _, err := os.Stat(mark); err == nil {
		t.Error("what it started lived on")
	}
}
