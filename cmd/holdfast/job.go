package main

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

const optionHelp = `Options (--set NAME=VALUE, repeatable):
  compression=fast|off|better     how new bytes are encoded at the source (fast)
  vms=N                           virtual machines of one host at once, 1 to 64 (8)
  disks=N                         disks of one virtual machine at once, 1 to 64 (2)
  channels=N                      disks of the job at once on one host, 0 for no such bound (0)
  reconnect=TIME                  how long a broken connection may take to come back, 1m to 60m (10m)
  buffer=SIZE                     resumption buffer, 1MiB to 1GiB (10MiB)
  limit="RATE [reads] [WINDOW]"   speed on the wire, or of reading disks, on each host: limit="20MiB/s 08:00-18:00 mon-fri"; none removes all
  precondition=SCRIPT             runs first; a code other than 0 aborts the run, and the job stays idle
  pre-script=SCRIPT               runs on each host before its virtual machines; if it fails they are not backed up
  post-script=SCRIPT              runs on each host after its virtual machines, HOLDFAST_RESULT says how they went
  script-timeout=TIME             how long a script may take (10m)
  consistency=LEVEL               automatic, application, application-required or crash (automatic)
  group=on|off                    freeze the virtual machines of a host at one moment (off)
  priority=N                      0 to 9; higher ones go first where jobs share a host (0)
  retries=N  retry-wait=TIME      try what failed again, N times (0), after a time (10m)
  missed=run|skip                 what becomes of a moment that passed while the job could not start (run)
  start-window=TIME               how late a start may be; 0 for however late (0)
  blackout=WINDOW                 when nothing starts, like "08:00-18:00 mon-fri"; none removes all
  network=NAME|CIDR|any|host      data network of the job, instead of each host's own (host); any: as the hosts' routing has it
SCRIPT is the name of a file that the host's administrator put into the agent's scripts folder.`

const scheduleHelp = `Schedules (--schedule, repeatable), with a type before them where it is not the job's, like "full: weekly 22:00 on sun":
  now                                     start at once
  once 2026-12-01T02:00
  hourly 08:00-20:00 every 30m
  daily 22:00 every 2d
  weekly 22:00 every 1w on sun,wed
  monthly 03:00 on 1,15,last in jan,jul   or: monthly 03:00 on last sun
Where two name the same moment the job runs once, with the more thorough type.`

func (a *app) jobCmd() *cobra.Command {
	return cli.Group("job", "Jobs: what is backed up, when and how", a.jobCreate(), a.jobList(), a.jobShow(), a.jobSet(), a.jobRun(),
		a.jobAct("stop", "Stop what a job is doing; sets that are committed stay", func(p *printer, j api.Job) {
			p.line("Job %s is being stopped.", cli.Clean(j.Name))
		}, "POST", "/stop", nil),
		a.jobAct("enable", "Let a job's schedules start it", func(p *printer, j api.Job) {
			p.line("Job %s is enabled; it runs next %s.", cli.Clean(j.Name), when(j.Next))
		}, "PATCH", "", map[string]bool{"enabled": true}),
		a.jobAct("disable", "Keep a job's schedules from starting it", func(p *printer, j api.Job) {
			p.line("Job %s is disabled.", cli.Clean(j.Name))
		}, "PATCH", "", map[string]bool{"enabled": false}),
		a.jobDelete())
}

func jobPath(name string) string { return "/v1/jobs/" + url.PathEscape(name) }

func (a *app) jobCreate() *cobra.Command {
	var s api.JobSpec
	var all bool
	c := &cobra.Command{
		Use:   "create NAME (--vm V ... | --host H --all | --match PATTERN) --pool P",
		Short: "Create a job",
		Long: "Create a job: virtual machines named, all of a host, or all whose names match a pattern, less those that are excluded. They are known by\n" +
			"their ids: one that is renamed or moved stays in the job, and a new one that a host or a pattern brings is taken in.\n\n" + scheduleHelp + "\n\n" + optionHelp + "\n\n" + cli.ExitHelp,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s.Name = args[0]
			if (len(s.Hosts) > 0) != all {
				return cli.UsageError(c, holdfast.Errorf(holdfast.Invalid, "", "--host and --all go together").Advise("all virtual machines of a host are --host H --all; a single one is --vm V"))
			}
			var out api.JobCreated
			if err := a.call(c.Context(), "POST", "/v1/jobs", s, &out); err != nil {
				return err
			}
			return a.print(out, func(p *printer) {
				p.line("Job %s is there: %s now, %s.", cli.Clean(out.Job.Name), plural(len(out.Job.Selected), "virtual machine"), nextText(out.Job))
				if out.Run != nil {
					p.line("Run %s is under way; follow it with: holdfast run follow %s", out.Run.ID, out.Run.ID)
				}
			})
		},
	}
	f := c.Flags()
	f.StringArrayVar(&s.VMs, "vm", nil, "a virtual machine, by name or id; repeatable")
	f.StringArrayVar(&s.Hosts, "host", nil, "a host, with --all; repeatable")
	f.BoolVar(&all, "all", false, "all virtual machines of the hosts, now and later")
	f.StringArrayVar(&s.Match, "match", nil, "a pattern of names, on any host, like 'sql-*'; repeatable")
	f.StringArrayVar(&s.Exclude, "exclude", nil, "a name, pattern or id that is left out; repeatable")
	f.StringArrayVar(&s.ExcludeDisks, "exclude-disk", nil, "a disk that is left out: its id or a pattern of its file's name, or VM:PATTERN; repeatable")
	f.StringVar(&s.Pool, "pool", "", "the pool that the sets go to")
	f.StringVar(&s.Type, "type", "", "full, incremental (usual) or differential")
	f.StringArrayVar(&s.Schedules, "schedule", nil, "when it runs; repeatable")
	f.StringVar(&s.Zone, "zone", "", "time zone of schedules and windows, like Europe/Berlin; UTC if not given")
	f.StringArrayVar(&s.Options, "set", nil, "an option, NAME=VALUE; repeatable")
	f.BoolVar(&s.Disabled, "disabled", false, "do not let the schedules start it yet")
	_ = c.MarkFlagRequired("pool") // fails only for a flag that is not there
	return c
}

func nextText(j api.Job) string {
	switch {
	case !j.Enabled:
		return "disabled"
	case j.Next.IsZero():
		return "started by hand"
	}
	return "next " + when(j.Next)
}

func (a *app) jobList() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List jobs", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		var js []api.Job
		if err := a.call(c.Context(), "GET", "/v1/jobs", nil, &js); err != nil {
			return err
		}
		return a.print(js, func(p *printer) {
			if len(js) == 0 {
				p.line("There is no job yet; next: holdfast job create NAME --host HOST --all --pool POOL --schedule 'daily 22:00'")
				return
			}
			p.row("JOB", "STATE", "VMS", "POOL", "LAST", "NEXT")
			for _, j := range js {
				p.row(j.Name, j.State, len(j.Selected), j.Pool, orDash(j.LastResult), nextText(j))
			}
		})
	}}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (a *app) jobShow() *cobra.Command {
	return &cobra.Command{Use: "show NAME", Short: "Show a job", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		var j api.Job
		if err := a.call(c.Context(), "GET", jobPath(args[0]), nil, &j); err != nil {
			return err
		}
		return a.print(j, func(p *printer) { showJob(p, j) })
	}}
}

func showJob(p *printer, j api.Job) {
	p.row("job", j.Name)
	p.row("state", j.State)
	p.row("pool", j.Pool)
	p.row("type", j.Type)
	for _, s := range j.Schedules {
		p.row("schedule", s)
	}
	p.row("zone", j.Zone)
	p.row("next", nextText(j))
	if j.LastRun != "" {
		p.row("last run", j.LastRun, orDash(j.LastResult), when(j.LastEnded))
		p.row("last good", when(j.LastGood))
	}
	for _, r := range j.Running {
		p.row("running", r)
	}
	for _, x := range []struct {
		name   string
		values []string
	}{{"hosts", j.Hosts}, {"match", j.Match}, {"exclude", j.Exclude}, {"exclude disks", j.ExcludeDisks}} {
		if len(x.values) > 0 {
			p.row(x.name, strings.Join(x.values, ", "))
		}
	}
	for _, o := range slices.Sorted(maps.Keys(j.Options)) {
		p.row(o, j.Options[o])
	}
	p.line("")
	p.row("VM", "HOST", "ID")
	for _, v := range j.Selected {
		p.row(v.Name, v.Host, v.ID)
	}
	for _, v := range j.VMs {
		if v.Gone {
			p.row(v.Name, "(no host has it any more)", v.ID)
		}
	}
}

func (a *app) jobSet() *cobra.Command {
	var ch api.JobChange
	var pool, typ, zone string
	var hosts, match, exclude, disks, schedules []string
	c := &cobra.Command{
		Use: "set NAME", Short: "Change a job",
		Long: "Change a job. --schedule, --host, --match, --exclude and --exclude-disk replace what was there; an empty one ('') removes it.\n\n" +
			scheduleHelp + "\n\n" + optionHelp + "\n\n" + cli.ExitHelp,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			for name, set := range map[string]func(){
				"pool": func() { ch.Pool = &pool }, "type": func() { ch.Type = &typ }, "zone": func() { ch.Zone = &zone },
				"host": func() { ch.Hosts = given(hosts) }, "match": func() { ch.Match = given(match) }, "exclude": func() { ch.Exclude = given(exclude) },
				"exclude-disk": func() { ch.ExcludeDisks = given(disks) }, "schedule": func() { ch.Schedules = given(schedules) },
			} {
				if c.Flags().Changed(name) {
					set()
				}
			}
			var j api.Job
			if err := a.call(c.Context(), "PATCH", jobPath(args[0]), ch, &j); err != nil {
				return err
			}
			return a.print(j, func(p *printer) { showJob(p, j) })
		},
	}
	f := c.Flags()
	f.StringArrayVar(&ch.AddVMs, "add-vm", nil, "take a virtual machine in; repeatable")
	f.StringArrayVar(&ch.RemoveVMs, "remove-vm", nil, "take a virtual machine out; repeatable")
	f.StringArrayVar(&hosts, "host", nil, "all virtual machines of these hosts; repeatable")
	f.StringArrayVar(&match, "match", nil, "patterns of names; repeatable")
	f.StringArrayVar(&exclude, "exclude", nil, "names, patterns or ids that are left out; repeatable")
	f.StringArrayVar(&disks, "exclude-disk", nil, "disks that are left out; repeatable")
	f.StringArrayVar(&schedules, "schedule", nil, "when it runs; repeatable")
	f.StringVar(&pool, "pool", "", "the pool that the sets go to")
	f.StringVar(&typ, "type", "", "full, incremental or differential")
	f.StringVar(&zone, "zone", "", "time zone of schedules and windows")
	f.StringArrayVar(&ch.Options, "set", nil, "an option, NAME=VALUE; repeatable")
	return c
}

// given is what a repeatable flag holds, without empty values.
func given(v []string) *[]string {
	v = slices.DeleteFunc(v, func(s string) bool { return s == "" })
	return &v
}

func (a *app) jobRun() *cobra.Command {
	var r api.JobRun
	var follow bool
	c := &cobra.Command{
		Use: "run NAME", Short: "Run a job now", Long: "Run a job now, also one that is disabled. Interrupting --follow leaves the run going in the daemon.\n\n" + cli.ExitHelp,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var run api.Run
			if err := a.call(c.Context(), "POST", jobPath(args[0])+"/run", r, &run); err != nil {
				return err
			}
			return a.finish(c, run, !follow)
		},
	}
	c.Flags().StringVar(&r.Type, "type", "", "full, incremental or differential instead of the job's type")
	c.Flags().BoolVar(&r.Failed, "failed", false, "only the virtual machines that the last run failed for")
	c.Flags().BoolVar(&follow, "follow", false, "wait for its end")
	return c
}

// jobAct makes a command that is one call about one job.
func (a *app) jobAct(verb, short string, text func(*printer, api.Job), method, tail string, body any) *cobra.Command {
	return &cobra.Command{Use: verb + " NAME", Short: short, Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		var j api.Job
		if err := a.call(c.Context(), method, jobPath(args[0])+tail, body, &j); err != nil {
			return err
		}
		return a.print(j, func(p *printer) { text(p, j) })
	}}
}

func (a *app) jobDelete() *cobra.Command {
	var yes bool
	c := &cobra.Command{Use: "delete NAME", Short: "Delete a job; its sets and the history of its runs stay", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		var j api.Job
		if err := a.call(c.Context(), "GET", jobPath(args[0]), nil, &j); err != nil {
			return err
		}
		loss := fmt.Sprintf("The job %s, its %s and its retention policy will be gone. %s will no longer be backed up by it. Sets stay.",
			cli.Clean(j.Name), plural(len(j.Schedules), "schedule"), plural(len(j.Selected), "virtual machine"))
		if err := a.confirm(yes, loss); err != nil {
			return err
		}
		if err := a.call(c.Context(), "DELETE", jobPath(args[0]), nil, &j); err != nil {
			return err
		}
		return a.print(j, func(p *printer) { p.line("Job %s was deleted.", cli.Clean(j.Name)) })
	}}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

func (a *app) runLog() *cobra.Command {
	return &cobra.Command{Use: "log RUN", Short: "Show the log of a run", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		l, err := a.logFrom(c.Context(), args[0], 0, 0)
		if err != nil {
			return err
		}
		return a.print(l, func(p *printer) { logLines(p, l) })
	}}
}

func (a *app) logFrom(ctx context.Context, run string, from, waitMS int) (l api.RunLog, err error) {
	err = a.call(ctx, "GET", fmt.Sprintf("/v1/runs/%s/log?from=%d&wait_ms=%d", url.PathEscape(run), from, waitMS), nil, &l)
	return l, err
}

func logLines(p *printer, l api.RunLog) {
	for _, x := range l.Lines {
		text := x.Text
		if x.Task != "" {
			text = x.Task + ": " + text
		}
		for line := range strings.SplitSeq(text, "\n") {
			p.line("%s  %s", x.Time.Local().Format("2006-01-02 15:04:05"), cli.Clean(line))
		}
	}
}

func (a *app) runFollow() *cobra.Command {
	return &cobra.Command{
		Use: "follow RUN", Short: "Print the log of a run as it grows, to the run's end",
		Long: "Print the log of a run as it grows, to the run's end. With --json, one object a line for each part.\nInterrupting it leaves the run going.\n\n" + cli.ExitHelp,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			const wait = 10_000
			for from := 0; ; {
				l, err := a.logFrom(c.Context(), args[0], from, wait)
				if err != nil {
					return err
				}
				if len(l.Lines) > 0 {
					if err := a.print(l, func(p *printer) { logLines(p, l) }); err != nil {
						return err
					}
				}
				if from = l.Next; api.Final(l.State) && len(l.Lines) == 0 {
					var r api.Run
					if err := a.call(c.Context(), "GET", "/v1/runs/"+url.PathEscape(args[0]), nil, &r); err != nil {
						return err
					}
					return runError(r)
				}
			}
		},
	}
}

func (a *app) runReport() *cobra.Command {
	return &cobra.Command{Use: "report RUN", Short: "Report of a run as CSV, one line a disk; with --json as JSON", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		var r api.Run
		if err := a.call(c.Context(), "GET", "/v1/runs/"+url.PathEscape(args[0]), nil, &r); err != nil {
			return err
		}
		if a.json {
			return a.print(r, nil)
		}
		if err := api.WriteCSV(a.out, r); err != nil {
			return holdfast.Errorf(holdfast.Internal, "print", "%w", err)
		}
		return nil
	}}
}
