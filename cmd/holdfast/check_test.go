package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance/api"
)

// perfData is what Nagios's plug-in guidelines allow, in the part that is used here.
var perfData = regexp.MustCompile(`^('[^'=]+'=-?[0-9.]+(%|s)?;[0-9.]*;[0-9.]* ?)+$`)

// TestCheckSaysStateAndPerformanceData walks the states that a plug-in can have.
func TestCheckSaysStateAndPerformanceData(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	well := func() api.Monitor {
		return api.Monitor{Time: now, Pools: []api.MonitorPool{{Name: "main", State: api.PoolOpen, Filled: 0.5}}, Hosts: []api.MonitorHost{{Name: "hv1", State: api.HostOnline}},
			VMs:  []api.MonitorVM{{Name: "db", Last: now.Add(-time.Hour), Protected: true}},
			Jobs: []api.MonitorJob{{Name: "nightly", Enabled: true, LastResult: api.StateDone, LastGood: now.Add(-time.Hour), Next: now.Add(time.Hour)}}}
	}
	for name, c := range map[string]struct {
		change     func(*api.Monitor)
		what       string
		warn, crit string
		state      int
		word       string
	}{
		"all is well":         {func(*api.Monitor) {}, "all", "", "", checkOK, "4 checked"},
		"a pool fills":        {func(m *api.Monitor) { m.Pools[0].Filled = 0.85 }, "pool", "", "", checkWarning, "85% full"},
		"a pool is full":      {func(m *api.Monitor) { m.Pools[0].Filled = 0.9 }, "all", "", "", checkCritical, "90% full"},
		"own thresholds":      {func(m *api.Monitor) { m.Pools[0].Filled = 0.5 }, "pool", "40", "60%", checkWarning, "50% full"},
		"a pool is away":      {func(m *api.Monitor) { m.Pools[0].State, m.Pools[0].Error = "offline", "no disk | here" }, "all", "", "", checkCritical, "no disk / here"},
		"damage":              {func(m *api.Monitor) { m.Pools[0].Damaged = true }, "all", "", "", checkCritical, "damaged"},
		"a host is away":      {func(m *api.Monitor) { m.Hosts[0].State = "offline" }, "host", "", "", checkWarning, "hv1 is offline"},
		"an old point":        {func(m *api.Monitor) { m.VMs[0].Last = now.Add(-40 * time.Hour) }, "vm", "", "", checkWarning, "40h00m ago"},
		"a very old point":    {func(m *api.Monitor) { m.VMs[0].Last = now.Add(-80 * time.Hour) }, "all", "", "", checkCritical, "db"},
		"strict":              {func(*api.Monitor) {}, "vm", "10m", "30m", checkCritical, "1h00m ago"},
		"no point":            {func(m *api.Monitor) { m.VMs[0].Last = time.Time{} }, "vm", "", "", checkWarning, "no point in time yet"},
		"a job failed":        {func(m *api.Monitor) { m.Jobs[0].LastResult = api.StateFailed }, "job", "", "", checkCritical, "failed"},
		"a job did not start": {func(m *api.Monitor) { m.Jobs[0].Next = now.Add(-time.Hour) }, "job", "", "", checkCritical, "should have started"},
		"an alarm": {func(m *api.Monitor) {
			m.Alarms = []api.MonitorAlarm{{Key: "k", Severity: "alarm", Text: "it burns"}}
		}, "all", "", "", checkCritical, "it burns"},
		"thresholds of what?": {func(*api.Monitor) {}, "all", "1", "2", checkUnknown, "--warn"},
		"not percent":         {func(*api.Monitor) {}, "pool", "x", "", checkUnknown, "percent"},
	} {
		m := well()
		c.change(&m)
		var out bytes.Buffer
		k := &checker{a: &app{out: &out}, warn: c.warn, crit: c.crit}
		found, err := k.look(m, c.what, nil)
		if err != nil {
			found = []finding{{State: checkUnknown, Text: err.Error()}}
		}
		state := checkOK
		if err := k.report(found); err != nil {
			state = err.(*plugExit).code
		}
		text, perf, _ := strings.Cut(strings.TrimSpace(out.String()), " | ")
		if state != c.state || !strings.HasPrefix(text, "HOLDFAST "+checkWords[c.state]+" - ") || !strings.Contains(text, c.word) || strings.Contains(out.String()[:out.Len()-1], "\n") {
			t.Errorf("%s: state %d: %s", name, state, out.String())
		}
		if perf != "" && !perfData.MatchString(perf) {
			t.Errorf("%s: the performance data %q is none", name, perf)
		}
		if c.state != checkUnknown && c.what != "host" && c.word != "no point in time yet" && c.word != "no disk / here" && perf == "" {
			t.Errorf("%s: no performance data", name)
		}
	}
}

// TestCheckSpeaksToTheDaemon runs the plug-in as a monitoring system does.
func TestCheckSpeaksToTheDaemon(t *testing.T) {
	s := newSite(t)
	if code, out, errs := s.call("", "check", "pool", "main", "--warn", "99", "--crit", "100"); code != checkOK || !strings.Contains(out, "'pool_main'=") || errs != "" {
		t.Errorf("%d %s%s", code, out, errs)
	}
	if code, out, _ := s.call("", "check", "pool", "other"); code != checkUnknown || !strings.HasPrefix(out, "HOLDFAST UNKNOWN - ") {
		t.Errorf("%d %s", code, out)
	}
	if code, out, _ := s.call("", "check", "--checkmk"); code != checkOK || !strings.Contains(out, `"Holdfast pool main" pool_main=`) || !strings.Contains(out, `0 "Holdfast host hv1" - host hv1 is online`) {
		t.Errorf("%d %s", code, out)
	}
	s.data += "-gone"
	if code, out, errs := s.call("", "check"); code != checkUnknown || !strings.HasPrefix(out, "HOLDFAST UNKNOWN - ") || errs != "" {
		t.Errorf("%d %s%s", code, out, errs)
	}
}
