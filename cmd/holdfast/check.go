package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

// States of a monitoring plug-in, which are its exit codes too.
const (
	checkOK = iota
	checkWarning
	checkCritical
	checkUnknown
)

var checkWords = []string{"OK", "WARNING", "CRITICAL", "UNKNOWN"}

// A finding is one thing that was checked.
type finding struct {
	Service string  `json:"service"`
	State   int     `json:"state"`
	Text    string  `json:"text"`
	Value   float64 `json:"value"`
	Metric  string  `json:"metric,omitempty"`
	Unit    string  `json:"unit,omitempty"`
	Warn    string  `json:"warn,omitempty"`
	Crit    string  `json:"crit,omitempty"`
}

// perf is the finding's performance data, as Nagios's plug-in guidelines want it.
func (f finding) perf() string {
	if f.Metric == "" {
		return ""
	}
	name := strings.NewReplacer("'", "_", "=", "_").Replace(cli.Clean(f.Metric))
	return fmt.Sprintf("'%s'=%s%s;%s;%s", name, strconv.FormatFloat(f.Value, 'f', -1, 64), f.Unit, f.Warn, f.Crit)
}

type checker struct {
	a          *app
	warn, crit string
	checkmk    bool
}

func (a *app) checkCmd() *cobra.Command {
	k := &checker{a: a}
	c := &cobra.Command{
		Use: "check", Short: "Monitoring plug-in: checks pools, hosts, VMs, jobs and alarms", Args: cobra.NoArgs,
		Long: "Monitoring plug-in for Nagios, Icinga, checkmk and others: one line with performance data. Without more, checks everything.\n" +
			"--warn and --crit are percent for pools, and lengths of time like 26h for VMs and jobs.\n\n" + checkHelp,
		RunE: func(c *cobra.Command, _ []string) error { return k.run(c, "all", nil) },
	}
	for _, x := range []struct{ name, short string }{
		{"pool", "Check how full pools are, that they are open and without damage (80, 90)"},
		{"host", "Check that agents are online"},
		{"vm", "Check the age of the newest point in time of VMs (36h, 72h)"},
		{"job", "Check how the last runs of jobs ended, and how long ago one ended well (never, never)"},
		{"alarm", "Check open alarms"},
	} {
		c.AddCommand(&cobra.Command{Use: x.name + " [NAME...]", Short: x.short, Long: x.short + ".\n\n" + checkHelp,
			RunE: func(c *cobra.Command, args []string) error { return k.run(c, x.name, args) }})
	}
	c.PersistentFlags().StringVar(&k.warn, "warn", "", "threshold of WARNING")
	c.PersistentFlags().StringVar(&k.crit, "crit", "", "threshold of CRITICAL")
	c.PersistentFlags().BoolVar(&k.checkmk, "checkmk", false, "print one line for each thing, as a local check of checkmk; the exit code is 0")
	return c
}

const checkHelp = "Exit codes of this command: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN (also where the appliance does not answer)."

// run checks and prints. Whatever goes wrong is UNKNOWN: a plug-in has no other way to say so.
func (k *checker) run(c *cobra.Command, what string, names []string) error {
	var m api.Monitor
	err := k.a.call(c.Context(), "GET", "/v1/monitor", nil, &m)
	var found []finding
	if err == nil {
		found, err = k.look(m, what, names)
	}
	if err != nil {
		found = []finding{{Service: "appliance", State: checkUnknown, Text: err.Error()}}
	}
	return k.report(found)
}

// look gathers the findings.
func (k *checker) look(m api.Monitor, what string, names []string) ([]finding, error) {
	var out []finding
	if what == "all" && (k.warn != "" || k.crit != "") { // thresholds are of one kind of thing
		return nil, usage("say what --warn and --crit are for: 'holdfast check pool', 'vm' or 'job'")
	}
	for _, x := range []struct {
		what string
		look func(api.Monitor) ([]finding, error)
	}{{"pool", k.pools}, {"host", k.hosts}, {"vm", k.vms}, {"job", k.jobs}, {"alarm", k.alarms}} {
		if what != "all" && what != x.what {
			continue
		}
		fs, err := x.look(m)
		if err != nil {
			return nil, err
		}
		out = append(out, fs...)
	}
	if m.Failed != "" {
		out = append(out, finding{Service: "catalog", State: checkCritical, Text: "the catalog cannot be written: " + m.Failed})
	}
	for _, name := range names {
		if !slices.ContainsFunc(out, func(f finding) bool { return f.Service == what+" "+name }) {
			return nil, holdfast.Errorf(holdfast.NotExist, "check", "there is no %s %q", what, name).Advise("'holdfast %s list' shows what there is", what)
		}
	}
	if len(names) > 0 {
		out = slices.DeleteFunc(out, func(f finding) bool {
			return f.Service != "catalog" && !slices.Contains(names, strings.TrimPrefix(f.Service, what+" "))
		})
	}
	return out, nil
}

func (k *checker) pools(m api.Monitor) (out []finding, err error) {
	warn, crit := 80.0, 90.0
	for text, to := range map[string]*float64{k.warn: &warn, k.crit: &crit} {
		if text != "" {
			if *to, err = strconv.ParseFloat(strings.TrimSuffix(text, "%"), 64); err != nil {
				return nil, usage("%q is not percent", text)
			}
		}
	}
	for _, p := range m.Pools {
		f := finding{Service: "pool " + p.Name, Metric: "pool_" + p.Name, Value: math.Round(p.Filled*1000) / 10, Unit: "%", Warn: fmt.Sprint(warn), Crit: fmt.Sprint(crit)}
		f.Text = fmt.Sprintf("pool %s is %.0f%% full", p.Name, f.Value)
		switch {
		case p.State != api.PoolOpen:
			f.State, f.Metric, f.Text = checkCritical, "", "pool "+p.Name+" is offline: "+p.Error
		case p.Damaged:
			f.State, f.Text = checkCritical, f.Text+" and damaged"
		case f.Value >= crit:
			f.State = checkCritical
		case f.Value >= warn:
			f.State = checkWarning
		}
		out = append(out, f)
	}
	return out, nil
}

func (k *checker) hosts(m api.Monitor) (out []finding, err error) {
	for _, h := range m.Hosts {
		f := finding{Service: "host " + h.Name, Text: "host " + h.Name + " is " + h.State}
		if h.State != api.HostOnline {
			f.State = checkWarning
		}
		out = append(out, f)
	}
	return out, nil
}

// ages reads --warn and --crit as lengths of time; 0 means never.
func (k *checker) ages(warn, crit time.Duration) (time.Duration, time.Duration, error) {
	for text, to := range map[string]*time.Duration{k.warn: &warn, k.crit: &crit} {
		if text == "" {
			continue
		}
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return 0, 0, usage("%q is not a length of time like 26h", text)
		}
		*to = d
	}
	return warn, crit, nil
}

// aged judges how long ago something good happened.
func (f *finding) aged(age, warn, crit time.Duration) {
	f.Value, f.Unit = math.Round(age.Seconds()), "s"
	if warn > 0 {
		f.Warn = fmt.Sprint(int64(warn.Seconds()))
	}
	if crit > 0 {
		f.Crit = fmt.Sprint(int64(crit.Seconds()))
	}
	switch {
	case crit > 0 && age > crit:
		f.State = max(f.State, checkCritical)
	case warn > 0 && age > warn:
		f.State = max(f.State, checkWarning)
	}
}

// vms judges VMs that a job backs up, or that have points.
func (k *checker) vms(m api.Monitor) (out []finding, err error) {
	warn, crit, err := k.ages(36*time.Hour, 72*time.Hour)
	if err != nil {
		return nil, err
	}
	for _, v := range m.VMs {
		f := finding{Service: "vm " + v.Name}
		switch {
		case v.Last.IsZero() && !v.Protected:
			f.Text = "VM " + v.Name + " is not backed up, and no job is to"
		case v.Last.IsZero():
			f.State, f.Text = checkWarning, "VM "+v.Name+" has no point in time yet"
		default:
			age := m.Time.Sub(v.Last)
			f.Metric, f.Text = "vm_"+v.Name, "VM "+v.Name+" was backed up "+span(age)+" ago"
			f.aged(age, warn, crit)
		}
		out = append(out, f)
	}
	return out, nil
}

func (k *checker) jobs(m api.Monitor) (out []finding, err error) {
	warn, crit, err := k.ages(0, 0)
	if err != nil {
		return nil, err
	}
	for _, j := range m.Jobs {
		f := finding{Service: "job " + j.Name, Text: "job " + j.Name + " has not run yet"}
		if j.LastResult != "" {
			f.Text = "the last run of job " + j.Name + " is " + j.LastResult
		}
		switch j.LastResult {
		case api.StateFailed:
			f.State = checkCritical
		case api.StatePartial, api.StateCancelled:
			f.State = checkWarning
		}
		if !j.LastGood.IsZero() && j.Enabled {
			f.Metric = "job_" + j.Name
			f.aged(m.Time.Sub(j.LastGood), warn, crit)
		}
		if j.Enabled && !j.Next.IsZero() && m.Time.Sub(j.Next) > 15*time.Minute && j.State != "running" {
			f.State, f.Text = checkCritical, fmt.Sprintf("job %s should have started %s ago", j.Name, span(m.Time.Sub(j.Next)))
		}
		out = append(out, f)
	}
	return out, nil
}

func (k *checker) alarms(m api.Monitor) (out []finding, err error) {
	for _, x := range m.Alarms {
		f := finding{Service: "alarm " + x.Key, State: checkWarning, Text: x.Text}
		if x.Severity == holdfast.Alarm.String() {
			f.State = checkCritical
		}
		out = append(out, f)
	}
	return out, nil
}

// report prints what was found, the worst first, and makes the exit code of it.
func (k *checker) report(found []finding) error {
	if k.checkmk {
		for _, f := range found {
			f.Unit = "" // checkmk knows no units here
			perf := f.perf()
			if perf == "" {
				perf = "-"
			}
			perf = strings.ReplaceAll(strings.TrimSuffix(strings.ReplaceAll(perf, "'", ""), ";"), " ", "_")
			fmt.Fprintf(k.a.out, "%d \"Holdfast %s\" %s %s\n", f.State, strings.ReplaceAll(cli.Clean(f.Service), "\"", ""), perf, cli.Clean(f.Text))
		}
		return nil
	}
	worst := checkOK
	var bad, perf []string
	slices.SortStableFunc(found, func(a, b finding) int { return b.State - a.State })
	for _, f := range found {
		worst = max(worst, f.State)
		if f.State != checkOK {
			bad = append(bad, cli.Clean(strings.ReplaceAll(f.Text, "|", "/")))
		}
		if p := f.perf(); p != "" {
			perf = append(perf, p)
		}
	}
	text := fmt.Sprintf("%d checked, nothing wrong", len(found))
	if len(bad) > 0 {
		text = strings.Join(bad[:min(len(bad), 5)], "; ")
		if len(bad) > 5 {
			text += fmt.Sprintf("; and %d more", len(bad)-5)
		}
	}
	if k.a.json {
		if err := k.a.print(map[string]any{"state": worst, "text": text, "found": found}, nil); err != nil {
			return err
		}
	} else {
		line := "HOLDFAST " + checkWords[worst] + " - " + text
		if len(perf) > 0 {
			line += " | " + strings.Join(perf, " ")
		}
		fmt.Fprintln(k.a.out, line)
	}
	if worst == checkOK {
		return nil
	}
	return &plugExit{worst}
}

// plugExit ends the program with a plug-in's code and prints nothing more.
type plugExit struct{ code int }

func (e *plugExit) Error() string { return checkWords[e.code] }

// metricsCmd prints the metrics, for a textfile collector: the appliance's port has none of its own for scrapes.
func (a *app) metricsCmd() *cobra.Command {
	return &cobra.Command{Use: "metrics", Short: "Print the metrics in Prometheus's text form", Args: cobra.NoArgs,
		Long: "Print the metrics in Prometheus's text form, for the textfile collector of the node exporter or a curl of your own.\n\n" + cli.ExitHelp,
		RunE: func(c *cobra.Command, _ []string) error {
			resp, err := a.open(c.Context(), "GET", "/metrics", nil)
			if err != nil {
				return err
			}
			defer resp.Body.Close() // read to its end below
			if _, err := io.Copy(a.out, resp.Body); err != nil {
				return holdfast.Errorf(holdfast.Offline, "read metrics", "%w", err).Advise("is holdfastd still running?")
			}
			return nil
		}}
}
