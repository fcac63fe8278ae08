package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// diff runs config diff and returns what it printed and the exit code.
func (s *site) diff(file string) (string, int) {
	s.t.Helper()
	out, err := exec.Command(filepath.Join(bin, "holdfast"), "--data", s.data, "config", "diff", "-f", file).CombinedOutput()
	code := 0
	if err != nil {
		code = -1
		if x, ok := err.(*exec.ExitError); ok {
			code = x.ExitCode()
		}
	}
	return string(out), code
}

// TestApplyingAFileBuildsTheSite is acceptance 9: config apply on an empty daemon builds the site, a second apply changes nothing, and the
// difference is empty; what the appliance exports builds the same site elsewhere.
func TestApplyingAFileBuildsTheSite(t *testing.T) {
	dir := t.TempDir()
	s := &site{t: t, dir: dir, data: filepath.Join(dir, "data"), adata: filepath.Join(dir, "agent"), lab: filepath.Join(dir, "lab")}
	if err := os.MkdirAll(s.lab, 0o755); err != nil {
		t.Fatal(err)
	}
	s.startDaemon()
	password := filepath.Join(dir, "mail.password")
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	write("mail.password", "do-not-show-me\n")
	file := write("site.yaml", fmt.Sprintf(`version: 1
pools:
  main: {kind: dedup, config: {path: %[1]s/main}, quota: 2TiB}
  plain:
    kind: standard
    config:
      paths: [{path: %[1]s/plain}]
    maintenance: true
networks:
  backup: {cidr: 127.0.0.0/8}
hosts:
  hv1: {protected: true, data_network: backup, egress: 127.0.0.2}
notifications:
  settings: {site: backup1, zone: Europe/Berlin, stale: 36h}
notification_targets:
  ops:
    mail: {host: mail.example.org, user: holdfast, password_file: %[2]s, from: holdfast@example.org, to: [ops@example.org]}
    rules:
      - severity: warning
      - {not: true, fields: {host: "test-*"}}
    digest: {at: 07:00}
jobs:
  nightly:
    pool: main
    hosts: [hv1]
    exclude: ["test-*"]
    schedules: ["daily 22:00", "full: weekly 20:00 on sun"]
    zone: Europe/Berlin
    options: {vms: 4, limit: "20MiB/s 08:00-18:00 mon-fri; 50MiB/s", group: on, retries: 1, network: backup}
  spare: {pool: plain, match: ["*"], type: full, disabled: true}
retention:
  job nightly: {policy: "days=30,weekly=8,min=2"}
  pool main: {policy: "count=10"}
  settings: {zone: Europe/Berlin}
`, dir, password))
	if out, code := s.diff(file); code != 3 || !strings.Contains(out, "9 to create, 2 to change, 0 to remove") {
		t.Fatalf("exit %d: %s", code, out)
	}
	var r struct {
		Done int `json:"done"`
		Made []struct{ Section, Name, Secret string }
		Plan struct{ Steps []any }
	}
	s.json(&r, "config", "apply", "-f", file)
	if r.Done != 11 || len(r.Made) != 1 || r.Made[0].Name != "hv1" || !strings.HasPrefix(r.Made[0].Secret, "HF1-") {
		t.Fatalf("%+v", r)
	}
	agentCmd(t, "enroll", "--data", s.adata, "--server", s.addr, "--key", r.Made[0].Secret)
	for range 2 { // before and after a restart
		if out, code := s.diff(file); code != 0 || !strings.Contains(out, "agree") {
			t.Errorf("after applying: exit %d: %s", code, out)
		}
		s.json(&r, "config", "apply", "-f", file)
		if r.Done != 0 || len(r.Made) != 0 || len(r.Plan.Steps) != 0 {
			t.Errorf("the second apply: %+v", r)
		}
		s.daemon.kill()
		s.startDaemon()
	}
	exported := s.cli("config", "export")
	if strings.Contains(exported, "do-not-show-me") {
		t.Error("a secret shows")
	}
	same := write("exported.yaml", exported)
	if out, code := s.diff(same); code != 0 {
		t.Errorf("the export differs from what it is of: %s", out)
	}
	s.changes(dir, write, exported)
}

// changes applies files that change and remove.
func (s *site) changes(dir string, write func(name, text string) string, exported string) {
	t := s.t
	t.Helper()
	less := write("less.yaml", "version: 1\nhosts:\nnotification_targets:\njobs: {nightly: {pool: main, match: [a*], schedules: [daily 21:00], options: {retries: 2}}}\npools:\n  main: {kind: dedup, config: {path: "+dir+"/main}}\n")
	out, code := s.diff(less)
	if code != 3 || strings.Count(out, "LOSES") != 3 || !strings.Contains(out, "options.vms: \"4\" → (nothing)") || !strings.Contains(out, "quota: \"2TiB\" → (nothing)") || strings.Contains(out, "notifications ") {
		t.Errorf("exit %d: %s", code, out)
	}
	if out, err := s.try("config", "apply", "-f", less); err == nil || !strings.Contains(err.Error(), "--yes") {
		t.Errorf("what loses was done without consent: %s", out)
	}
	if out, _ := s.diff(less); strings.Count(out, "LOSES") != 3 {
		t.Errorf("a refused apply changed something: %s", out)
	}
	s.cli("config", "apply", "-f", less, "--yes")
	if out, code := s.diff(less); code != 0 {
		t.Errorf("%s", out)
	}
	if _, err := os.Stat(filepath.Join(dir, "plain")); err != nil {
		t.Errorf("the data of a pool that left the file is gone: %v", err)
	}
	moved := write("moved.yaml", "version: 1\npools:\n  main: {kind: dedup, config: {path: "+dir+"/elsewhere}}\n")
	if out, err := s.try("config", "apply", "-f", moved, "--yes"); err == nil || !strings.Contains(err.Error(), "CANNOT BE DONE") {
		t.Errorf("a pool was moved by a file: %s", out)
	}
	for text, word := range map[string]string{
		"pools:\n":                         "version",
		"version: 1\npoools:\n":            "poools",
		"version: 1\nhosts: {a: {b: 1}}\n": "unknown field",
		"version: 1\nnotification_targets: {a: {gotify: {url: https://x, token: abc}}}\n": "no place for secrets",
	} {
		if out, err := s.try("config", "apply", "-f", write("bad.yaml", text)); err == nil || !strings.Contains(err.Error(), word) || strings.Contains(err.Error(), "abc") {
			t.Errorf("%q: %v %s", text, err, out)
		}
	}
	if !strings.Contains(exported, "password_file") {
		t.Errorf("%s", exported)
	}
}
