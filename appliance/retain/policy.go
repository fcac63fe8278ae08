package retain

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// A Policy says how long points in time stay. Fields that are 0 are off; the zero Policy keeps everything.
//
// Days, Count and Quota are limits: a point expires as soon as any of them says so. GFS is the opposite, a promise: what it
// selects stays whatever the limits say. With GFS and no limit, all that is not selected expires.
type Policy struct {
	Days  int   // points older than this many calendar days expire
	Count int   // of each VM's points, all but this many newest expire
	Quota int64 // bytes: as long as the pool holds more, its earliest points expire
	GFS   GFS

	// MinPoints is how many newest points of each VM stay whatever the policy says. Below 1 it is 1.
	MinPoints int
	// DelayUntilFull leaves expired points restorable until the pool is this many percent full; then they go, the earliest
	// first, until it is not. 0 removes expired points at once.
	DelayUntilFull int
}

// GFS says of how many of the latest hours, days, weeks, months and years that have points the newest point stays. Weeks
// begin on Mondays; all are counted in the zone that Decide is given.
type GFS struct {
	Hourly, Daily, Weekly, Monthly, Yearly int
}

// DefaultDelay is the percentage that "delay" without a number means.
const DefaultDelay = 90

// The bounds of a policy's numbers: far beyond use, near enough that no sum over them overflows.
const (
	maxDays   = 36500
	maxCount  = 1000000
	maxGFS    = 100000
	maxMin    = 1000
	maxQuota  = 1 << 60
	maxPolicy = 1024 // bytes of a policy's text
)

// Forever is the text of the policy that keeps everything.
const Forever = "forever"

// option is one name=number of a policy's text.
type option struct {
	name  string
	value *int
	most  int
}

// options lists the numbers of p in the order in which String prints them. Quota has a unit and is not among them.
func (p *Policy) options() []option {
	return []option{
		{"days", &p.Days, maxDays}, {"count", &p.Count, maxCount},
		{"hourly", &p.GFS.Hourly, maxGFS}, {"daily", &p.GFS.Daily, maxGFS}, {"weekly", &p.GFS.Weekly, maxGFS},
		{"monthly", &p.GFS.Monthly, maxGFS}, {"yearly", &p.GFS.Yearly, maxGFS},
		{"min", &p.MinPoints, maxMin}, {"delay", &p.DelayUntilFull, 100},
	}
}

func bad(format string, args ...any) error {
	return holdfast.Errorf(holdfast.Invalid, "read retention", format, args...).
		Advise(`write for example "days=30", "days=30,count=60,quota=2TiB", "daily=14,weekly=8,monthly=12,min=2", "days=30,delay=90" or "forever"`)
}

// ParsePolicy reads a policy as String writes it: name=number joined by commas, in any order and case, blanks between them
// allowed. Names are days, count, quota (bytes, or KiB to PiB), hourly, daily, weekly, monthly, yearly, min and delay. 0 is
// off. Errors are Invalid and show examples.
func ParsePolicy(text string) (Policy, error) {
	p := Policy{MinPoints: 1}
	if len(text) > maxPolicy {
		return Policy{}, bad("the policy is %d bytes long; at most %d are allowed", len(text), maxPolicy)
	}
	if text = strings.ToLower(strings.TrimSpace(text)); text == Forever {
		return p, nil
	}
	seen := map[string]bool{}
	for word := range strings.SplitSeq(text, ",") {
		name, value, given := strings.Cut(strings.TrimSpace(word), "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if seen[name] {
			return Policy{}, bad("%q is there twice", name)
		}
		seen[name] = true
		if name == "delay" && !given {
			value = strconv.Itoa(DefaultDelay)
		}
		if err := p.set(name, value); err != nil {
			return Policy{}, err
		}
	}
	return p, nil
}

func (p *Policy) set(name, value string) (err error) {
	if name == "quota" {
		p.Quota, err = parseBytes(value)
		return err
	}
	for _, o := range p.options() {
		if o.name != name {
			continue
		}
		n, err := strconv.ParseUint(value, 10, 31)
		switch {
		case err != nil || int(n) > o.most:
			return bad("%s=%q is not a number from 0 to %d", name, value, o.most)
		case name == "min" && n == 0:
			return bad("min=0 is not possible: the newest good point of a VM never expires")
		}
		*o.value = int(n)
		return nil
	}
	return bad("%q is not understood", name)
}

// String returns the policy in its canonical form, which ParsePolicy reads back.
func (p Policy) String() string {
	p = p.normal()
	var words []string
	for _, o := range p.options() {
		if *o.value > 0 && (o.name != "min" || *o.value > 1) {
			words = append(words, fmt.Sprintf("%s=%d", o.name, *o.value))
		}
		if o.name == "count" && p.Quota > 0 {
			words = append(words, "quota="+formatBytes(p.Quota))
		}
	}
	if len(words) == 0 {
		return Forever
	}
	return strings.Join(words, ",")
}

// MarshalText implements encoding.TextMarshaler.
func (p Policy) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Policy) UnmarshalText(text []byte) (err error) {
	*p, err = ParsePolicy(string(text))
	return err
}

// normal returns p with every number inside its bounds.
func (p Policy) normal() Policy {
	for _, o := range p.options() {
		*o.value = min(max(*o.value, 0), o.most)
	}
	p.Quota = min(max(p.Quota, 0), maxQuota)
	p.MinPoints = max(p.MinPoints, 1)
	return p
}

// limited tells whether the policy has a limit that makes points expire.
func (p Policy) limited() bool { return p.Days > 0 || p.Count > 0 || p.Quota > 0 }

var units = []string{"KiB", "MiB", "GiB", "TiB", "PiB"}

func parseBytes(s string) (int64, error) {
	shift, number := 0, strings.TrimSuffix(s, "b")
	for i, u := range units {
		if n, ok := strings.CutSuffix(s, strings.ToLower(u)); ok {
			shift, number = 10*(i+1), n
		}
	}
	n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 62)
	if err != nil || n > maxQuota>>shift {
		return 0, bad("quota=%q is not a number of bytes up to 1024PiB: write 500GiB or 2TiB", s)
	}
	return int64(n) << shift, nil
}

// formatBytes writes n exactly, in the largest unit that divides it.
func formatBytes(n int64) string {
	unit := ""
	for _, u := range units {
		if n == 0 || n%1024 != 0 {
			break
		}
		n, unit = n/1024, u
	}
	return strconv.FormatInt(n, 10) + unit
}
