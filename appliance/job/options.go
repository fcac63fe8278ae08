package job

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

// Types of backups: what is read. Every set restores the whole VM, whatever its type.
const (
	TypeFull         = "full"         // everything
	TypeIncremental  = "incremental"  // what changed since the newest set
	TypeDifferential = "differential" // what changed since the newest full set
)

// What becomes of a moment at which a job could not be started.
const (
	MissedRun  = "run"  // it is caught up once, as soon as that is possible
	MissedSkip = "skip" // it is told, and passed over
)

// AnyNetwork is the network of a job whose data goes as the hosts' routing has it, whatever network they have been given.
const AnyNetwork = "any"

// A Tuning is the options of a job: how it works. The zero value of a field is its default, which Shown tells.
type Tuning struct {
	Compression   string        `json:"compression,omitempty"`
	VMs           int           `json:"vms,omitempty"`      // of one host at once
	Disks         int           `json:"disks,omitempty"`    // of one VM at once
	Channels      int           `json:"channels,omitempty"` // disks of the job at once on one host, whatever VM they are of
	Reconnect     time.Duration `json:"reconnect,omitempty"`
	Buffer        int64         `json:"buffer,omitempty"`
	Limits        []wire.Limit  `json:"limits,omitempty"`
	Precondition  string        `json:"precondition,omitempty"`
	PreScript     string        `json:"pre_script,omitempty"`
	PostScript    string        `json:"post_script,omitempty"`
	ScriptTimeout time.Duration `json:"script_timeout,omitempty"`
	Consistency   string        `json:"consistency,omitempty"`
	Group         bool          `json:"group,omitempty"` // the VMs of a host are frozen at one moment
	Priority      int           `json:"priority,omitempty"`
	Retries       int           `json:"retries,omitempty"`
	RetryWait     time.Duration `json:"retry_wait,omitempty"`
	Missed        string        `json:"missed,omitempty"`
	StartWindow   time.Duration `json:"start_window,omitempty"` // how late a moment may start; 0: however late
	Blackout      []wire.Window `json:"blackout,omitempty"`     // when nothing starts
	Network       string        `json:"network,omitempty"`      // data network instead of the hosts' own: a name, a CIDR, or AnyNetwork; "": the hosts' own
}

// The defaults of options and their bounds.
const (
	defaultDisks   = 2
	defaultBuffer  = 10 << 20
	defaultTimeout = 10 * time.Minute
	defaultRetry   = 10 * time.Minute
	maxAtOnce      = 64
	maxChannels    = 256
	maxBuffer      = 1 << 30
	minBuffer      = 1 << 20
	maxRetries     = 10
	maxTimeout     = 24 * time.Hour
	maxName        = 64
	// MaxPriority is the highest priority of a job; 0 is usual.
	MaxPriority = 9
)

// an option is one name of --set: how its value is read and shown.
type option struct {
	name string
	help string
	set  func(o *Tuning, v string) error
	show func(o *Tuning) string
}

func badOption(name, v, want string) error {
	return holdfast.Errorf(holdfast.Invalid, "set option", "%s=%q is not %s", name, v, want).Advise("'holdfast job create --help' lists the options")
}

func number(name string, from, to int, at func(*Tuning) *int, usual int) option {
	return option{name, fmt.Sprintf("%d to %d", from, to), func(o *Tuning, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < from || n > to {
			return badOption(name, v, fmt.Sprintf("a number from %d to %d", from, to))
		}
		*at(o) = n
		return nil
	}, func(o *Tuning) string { return strconv.Itoa(or(*at(o), usual)) }}
}

func duration(name string, from, to time.Duration, at func(*Tuning) *time.Duration, usual time.Duration) option {
	want := fmt.Sprintf("%s to %s", short(from), short(to))
	return option{name, want, func(o *Tuning, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < from || d > to {
			return badOption(name, v, "a time from "+want)
		}
		*at(o) = d
		return nil
	}, func(o *Tuning) string { return short(or(*at(o), usual)) }}
}

func choice(name string, words []string, at func(*Tuning) *string) option {
	return option{name, strings.Join(words, "|"), func(o *Tuning, v string) error {
		if !slices.Contains(words, v) {
			return badOption(name, v, "one of "+strings.Join(words, ", "))
		}
		*at(o) = v
		return nil
	}, func(o *Tuning) string { return or(*at(o), words[0]) }}
}

// script is an option that names a file in the agent's scripts folder. Whether it is there the agent says when it is needed.
func script(name string, at func(*Tuning) *string) option {
	return option{name, "name of a file in the agent's scripts folder, or none", func(o *Tuning, v string) error {
		if v == "none" {
			v = ""
		}
		if !ScriptName(v) && v != "" {
			return badOption(name, v, "the plain name of a file: letters, digits, and . _ - inside")
		}
		*at(o) = v
		return nil
	}, func(o *Tuning) string { return or(*at(o), "none") }}
}

// ScriptName tells whether a name may be that of a script: no folder, nothing that a shell or a file system reads otherwise.
func ScriptName(s string) bool {
	for i, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("._-", r)) {
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

func options() []option {
	return []option{
		choice("compression", []string{"fast", "off", "better"}, func(o *Tuning) *string { return &o.Compression }),
		number("vms", 1, maxAtOnce, func(o *Tuning) *int { return &o.VMs }, DefaultVMs),
		number("disks", 1, maxAtOnce, func(o *Tuning) *int { return &o.Disks }, defaultDisks),
		number("channels", 0, maxChannels, func(o *Tuning) *int { return &o.Channels }, 0),
		duration("reconnect", time.Minute, time.Hour, func(o *Tuning) *time.Duration { return &o.Reconnect }, DefaultReconnect),
		{"buffer", "1MiB to 1GiB", setBuffer, func(o *Tuning) string { return bytesText(or(o.Buffer, defaultBuffer)) }},
		{"limit", `RATE [reads] [HH:MM-HH:MM [DAYS]], or none; several are given by repeating it`, setLimit, showLimits},
		script("precondition", func(o *Tuning) *string { return &o.Precondition }),
		script("pre-script", func(o *Tuning) *string { return &o.PreScript }),
		script("post-script", func(o *Tuning) *string { return &o.PostScript }),
		duration("script-timeout", time.Second, maxTimeout, func(o *Tuning) *time.Duration { return &o.ScriptTimeout }, defaultTimeout),
		choice("consistency", []string{"automatic", "application", "application-required", "crash"}, func(o *Tuning) *string { return &o.Consistency }),
		{"group", "on|off: freeze the VMs of a host at one moment", func(o *Tuning, v string) error {
			if v != "on" && v != "off" {
				return badOption("group", v, "on or off")
			}
			o.Group = v == "on"
			return nil
		}, func(o *Tuning) string { return map[bool]string{true: "on", false: "off"}[o.Group] }},
		number("priority", 0, MaxPriority, func(o *Tuning) *int { return &o.Priority }, 0),
		number("retries", 0, maxRetries, func(o *Tuning) *int { return &o.Retries }, 0),
		duration("retry-wait", time.Second, maxTimeout, func(o *Tuning) *time.Duration { return &o.RetryWait }, defaultRetry),
		choice("missed", []string{MissedRun, MissedSkip}, func(o *Tuning) *string { return &o.Missed }),
		duration("start-window", 0, 7*24*time.Hour, func(o *Tuning) *time.Duration { return &o.StartWindow }, 0),
		{"network", "host, any, NAME or CIDR", setNetwork, func(o *Tuning) string { return or(o.Network, "host") }},
		{"blackout", "HH:MM-HH:MM [DAYS], or none; several are given by repeating it", setBlackout, func(o *Tuning) string {
			var out []string
			for _, w := range o.Blackout {
				out = append(out, w.String())
			}
			return or(strings.Join(out, "; "), "none")
		}},
	}
}

// Set applies "name=value". limit and blackout add to what is there; "none" takes it away. Errors are Invalid.
func (o *Tuning) Set(text string) error {
	name, value, ok := strings.Cut(text, "=")
	name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
	if ok {
		for _, x := range options() {
			if x.name == name {
				return x.set(o, value)
			}
		}
	}
	return holdfast.Errorf(holdfast.Invalid, "set option", "%q is no option=value", text[:min(len(text), 64)]).Advise("options are: %s", OptionNames())
}

// OptionNames lists the options and their values, for help.
func OptionNames() string {
	var out []string
	for _, x := range options() {
		out = append(out, x.name+"="+x.help)
	}
	return strings.Join(out, ", ")
}

// Shown returns all options with their values, defaults included.
func (o Tuning) Shown() map[string]string {
	out := map[string]string{}
	for _, x := range options() {
		out[x.name] = x.show(&o)
	}
	return out
}

func setBuffer(o *Tuning, v string) error {
	n, err := cli.ParseSize(v)
	if err != nil || n < minBuffer || n > maxBuffer {
		return badOption("buffer", v, "a size from 1MiB to 1GiB")
	}
	o.Buffer = n
	return nil
}

func setLimit(o *Tuning, v string) error {
	if v == "none" {
		o.Limits = nil
		return nil
	}
	const want = `like "20MiB/s", "20MiB/s 08:00-18:00 mon-fri" or "100MiB/s reads"`
	words := strings.Fields(v)
	if len(words) == 0 || len(o.Limits) >= wire.MaxLimits {
		return badOption("limit", v, want)
	}
	rate, perSecond := strings.CutSuffix(strings.ToLower(words[0]), "/s")
	n, err := cli.ParseSize(rate)
	if err != nil || !perSecond || n < 1024 {
		return badOption("limit", v, want)
	}
	l := wire.Limit{Rate: n}
	words = words[1:]
	if len(words) > 0 && (words[0] == "reads" || words[0] == "transfer") {
		l.Reads = words[0] == "reads"
		words = words[1:]
	}
	if len(words) > 0 {
		w, err := wire.ParseWindow(strings.Join(words, " "))
		if err != nil {
			return err
		}
		l.Window = &w
	}
	o.Limits = append(o.Limits, l)
	return nil
}

func showLimits(o *Tuning) string {
	var out []string
	for _, l := range o.Limits {
		s := bytesText(l.Rate) + "/s"
		if l.Reads {
			s += " reads"
		}
		if l.Window != nil {
			s += " " + l.Window.String()
		}
		out = append(out, s)
	}
	return or(strings.Join(out, "; "), "none")
}

// setNetwork takes a network as it is written; whether a name is one the appliance knows.
func setNetwork(o *Tuning, v string) error {
	if v == "host" {
		v = ""
	}
	if p, err := netip.ParsePrefix(v); err == nil {
		v = p.Masked().String()
	} else if v != "" && !ScriptName(v) {
		return badOption("network", v, "host, any, the name of a network, or one like 192.0.2.0/24")
	}
	o.Network = v
	return nil
}

func setBlackout(o *Tuning, v string) error {
	if v == "none" {
		o.Blackout = nil
		return nil
	}
	w, err := wire.ParseWindow(v)
	if err != nil {
		return err
	}
	if len(o.Blackout) >= wire.MaxLimits {
		return badOption("blackout", v, "possible beside so many others")
	}
	o.Blackout = append(o.Blackout, w)
	return nil
}

func or[T comparable](v, usual T) T {
	var zero T
	if v == zero {
		return usual
	}
	return v
}

// short writes a duration without zero units: 10m, not 10m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// bytesText writes a size with the largest unit that divides it.
func bytesText(n int64) string {
	for i, u := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if unit := int64(1) << (10 * (4 - i)); n >= unit && n%unit == 0 {
			return fmt.Sprintf("%d%s", n/unit, u)
		}
	}
	return fmt.Sprintf("%dB", n)
}

// RetryPause is how long after a run the VMs that failed are tried again.
func (o Tuning) RetryPause() time.Duration { return or(o.RetryWait, defaultRetry) }
