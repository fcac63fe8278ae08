package agent

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// ScriptsFolder is the folder below the agent's data in which the host's administrator places the files that jobs may run. The agent writes
// nothing there, and the appliance cannot: a job names a file, and no more.
const ScriptsFolder = "scripts"

const (
	maxScriptOutput  = 60 << 10 // kept of what a script prints: its end
	defaultScriptMax = 10 * time.Minute
	maxScriptTime    = 24 * time.Hour
	scriptGrace      = 2 * time.Second // for what a script that was ended has left to say
	maxEnvNames      = 64
	maxEnvValue      = 32 << 10
	scriptVarPrefix  = "HOLDFAST_"
)

func matchName(pattern, name string) bool {
	ok, err := path.Match(strings.ToLower(pattern), strings.ToLower(name))
	return err == nil && ok
}

// script runs a script task: a file of the scripts folder, with the run's facts in its environment. How it ended is told beside the
// error, which is about scripts that did not run to their end.
func (a *Agent) script(ctx context.Context, r *running) error {
	r.enter(phaseScript)
	file, err := a.findScript(r.task.Script)
	if err != nil {
		return err
	}
	env, err := scriptEnv(r.task.Env)
	if err != nil {
		return err
	}
	timeout := r.task.Timeout
	if timeout <= 0 {
		timeout = defaultScriptMax
	}
	timeout = min(timeout, maxScriptTime)
	run, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := holdfast.Errorf(holdfast.Offline, "run script", "%s did not end within %v", r.task.Script, timeout).
		Advise("look what it waits for, or give it more time with --set script-timeout=TIME")
	over := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		timer, stop := a.o.Clock.After(timeout)
		defer stop()
		select {
		case <-timer:
			cancel(late)
		case <-over:
		}
	})
	var out tail
	cmd := scriptCommand(run, file)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = env, filepath.Dir(file), &out, &out, scriptGrace
	err = cmd.Run()
	close(over)
	wg.Wait()
	res := &wire.ScriptResult{Exit: -1, Output: strings.ToValidUTF8(out.String(), "?")}
	r.scripted(res)
	var exit *exec.ExitError
	switch {
	case run.Err() != nil:
		return context.Cause(run)
	case errors.As(err, &exit):
		res.Exit = exit.ExitCode()
	case err != nil:
		return holdfast.Errorf(holdfast.Invalid, "run script", "%s: %w", r.task.Script, err).Advise("is it a program, or does its first line name one?")
	default:
		res.Exit = 0
	}
	return nil
}

// findScript finds the file of a name. Only a plain file that lies in the folder itself counts, which nobody but its owner can write: what
// others can change, others could run.
func (a *Agent) findScript(name string) (string, error) {
	const op = "find script"
	dir := filepath.Join(a.o.Dir, ScriptsFolder)
	hint := "the host's administrator places scripts in the folder '" + ScriptsFolder + "' of the agent's data"
	if name == "" || len(name) > 64 || strings.ContainsAny(name, `/\:`) || strings.HasPrefix(name, ".") || !filepath.IsLocal(name) {
		return "", holdfast.Errorf(holdfast.Permission, op, "%q is no name of a script", name).Advise("%s", hint)
	}
	file := filepath.Join(dir, name)
	for i, p := range []string{dir, file} {
		st, err := os.Lstat(p)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return "", holdfast.Errorf(holdfast.NotExist, op, "this host has no script %s", name).Advise("%s", hint)
		case err != nil:
			return "", holdfast.Errorf(holdfast.Permission, op, "%w", err)
		case i == 1 && !st.Mode().IsRegular(), i == 0 && !st.IsDir():
			return "", holdfast.Errorf(holdfast.Permission, op, "script %s is not a plain file in the scripts folder", name).Advise("%s", hint)
		case runtime.GOOS != "windows" && st.Mode().Perm()&0o022 != 0:
			return "", holdfast.Errorf(holdfast.Permission, op, "script %s, or its folder, can be written by others than its owner", name).
				Advise("take that right away: chmod go-w")
		}
	}
	return file, nil
}

// passedOn are the variables of the agent's own environment that scripts see; nothing else of it does.
var passedOn = []string{"PATH", "HOME", "LANG", "TZ", "TMPDIR", "SYSTEMROOT", "WINDIR", "COMSPEC", "PATHEXT", "TEMP", "TMP", "PROGRAMFILES", "PROGRAMDATA"}

// scriptEnv makes a script's environment. Facts are variables of ours only: a run cannot set PATH, or what a shell obeys.
func scriptEnv(facts map[string]string) ([]string, error) {
	if len(facts) > maxEnvNames {
		return nil, holdfast.Errorf(holdfast.Invalid, "run script", "%d facts; at most %d are allowed", len(facts), maxEnvNames)
	}
	var env []string
	for _, name := range passedOn {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	for name, v := range facts {
		if !strings.HasPrefix(name, scriptVarPrefix) || strings.ContainsAny(name, "=\x00") || strings.Contains(v, "\x00") || len(name) > 64 || len(v) > maxEnvValue {
			return nil, holdfast.Errorf(holdfast.Invalid, "run script", "the fact %q cannot be passed on", name[:min(len(name), 64)])
		}
		env = append(env, name+"="+v)
	}
	slices.Sort(env)
	return env, nil
}

// scriptCommand runs a file as its system does. Whatever it started is ended with it.
func scriptCommand(ctx context.Context, file string) *exec.Cmd {
	name, args := file, []string(nil)
	if runtime.GOOS == "windows" {
		switch strings.ToLower(filepath.Ext(file)) {
		case ".ps1":
			name, args = "powershell.exe", []string{"-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-File", file}
		case ".cmd", ".bat":
			name, args = "cmd.exe", []string{"/c", file}
		}
	}
	cmd := exec.CommandContext(ctx, name, args...)
	ownGroup(cmd)
	return cmd
}

// tail keeps the end of what is written.
type tail struct {
	mu  sync.Mutex
	b   []byte
	cut bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if n := len(t.b) - maxScriptOutput; n > 0 {
		t.b, t.cut = append(t.b[:0], t.b[n:]...), true
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cut {
		if i := bytes.IndexByte(t.b, '\n'); i >= 0 {
			return "…\n" + string(t.b[i+1:])
		}
	}
	return string(t.b)
}
