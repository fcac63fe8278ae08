package main

import (
	"os"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

// TestPoolsAreManagedFromTheCommandLine walks through every form of the pool commands, on pools of each kind in folders.
func TestPoolsAreManagedFromTheCommandLine(t *testing.T) {
	s := newSite(t)
	s.ok("backup", "db", "--pool", "main")
	s.ok("pool", "create", "plain", "--kind", "standard", "--path", s.path("a"), "--path", s.path("b"), "--quota", s.path("a")+"=2G")
	var stripe []string
	for _, n := range []string{"s1", "s2", "s3"} {
		stripe = append(stripe, "--path", s.path(n))
	}
	s.ok(append([]string{"pool", "create", "striped", "--kind", "dedup", "--stripe", "2+1"}, stripe...)...)
	s.ok("backup", "db", "--pool", "striped")
	var p api.Pool
	s.json(&p, "pool", "show", "plain")
	if !strings.Contains(string(p.Config), "2147483648") || p.Kind != "standard" {
		t.Errorf("%s", p.Config)
	}
	for _, line := range [][]string{
		{"pool", "set", "plain", "--rename", "simple"},
		{"pool", "set", "simple", "--quota", "10G", "--maintenance", "on"},
		{"pool", "set", "simple", "--quota", "none", "--quota", s.path("b") + "=1G", "--maintenance", "off"},
		{"pool", "set", "simple", "--add-path", s.path("c")},
		{"pool", "delete", "simple", "--yes"},
	} {
		s.ok(line...)
	}
	s.must(os.RemoveAll(s.path("s2")))
	s.must(os.Mkdir(s.path("new"), 0o700))
	if out := s.ok("pool", "set", "striped", "--replace-path", s.path("s2")+"="+s.path("new")); !strings.Contains(out, "redundancy") {
		t.Errorf("%s", out)
	}
	s.ok("pool", "verify", "striped")
	for _, c := range []struct {
		code int
		word string
		args []string
	}{
		{cli.Usage, "path", []string{"pool", "create", "x", "--kind", "dedup"}},
		{cli.Usage, "endpoint", []string{"pool", "create", "x", "--kind", "object", "--bucket", "b"}},
		{cli.Usage, "quota", []string{"pool", "create", "x", "--kind", "dedup", "--path", s.path("x"), "--quota", "1G"}},
		{cli.Usage, "stripe", append([]string{"pool", "create", "x", "--stripe", "5+2"}, stripe...)},
		{cli.Usage, "OLD=NEW", []string{"pool", "set", "main", "--replace-path", "x"}},
		{cli.Usage, "nothing", []string{"pool", "set", "main"}},
		{cli.Busy, "backup set", []string{"pool", "delete", "main", "--yes"}},
		{cli.NotFound, "nowhere", []string{"pool", "check", "nowhere"}},
		{cli.NotFound, "no pool", []string{"pool", "import", "x", "--path", s.path("lab")}},
	} {
		s.fails(c.code, c.word, c.args...)
	}
	s.ok("pool", "delete", "main", "--forget", "--yes")
	if out := s.ok("pool", "import", "main", "--kind", "dedup", "--path", s.path("pool")); !strings.Contains(out, "1 set") {
		t.Errorf("%s", out)
	}
	var sets []api.Set
	s.json(&sets, "set", "list", "--pool", "main")
	if len(sets) != 1 {
		t.Errorf("%+v", sets)
	}
}

// TestStepsAreDrawnForPeople shows the progress of what the appliance works on itself in its own unit.
func TestStepsAreDrawnForPeople(t *testing.T) {
	v := &view{disks: map[string]*track{}, tty: true}
	r := api.Run{Kind: "check", Tasks: []api.Task{{ID: "t", VM: "pool main", State: api.StateRunning, Phase: "order", Disks: []api.Progress{{Unit: "checks"}}}}}
	d := &r.Tasks[0].Disks[0]
	d.Total, d.Done = 40, 10
	v.render(shownAt(0), r)
	d.Done = 20
	got := strings.Join(v.render(shownAt(5), r), "\n")
	if want := "check of pool main: running, order\n  [############............]  50%  20 of 40 checks  2.0/s  ETA 10s"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
