package notify

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// Syslog sends RFC 5424 messages. Over TCP and unix streams they are framed by their length (RFC 6587). UDP, and TCP too, tell nothing of what
// became of a message: for alarms that must arrive, have a second target.
type Syslog struct {
	Network  string `json:"network"`            // udp, tcp or unix
	Address  string `json:"address"`            // host:port, or the socket's path: /dev/log
	Facility int    `json:"facility,omitzero"`  // 0 to 23; 0: 16, local0
	Hostname string `json:"hostname,omitempty"` // "": the machine's
}

const (
	maxSyslog       = 8 << 10 // bytes of one message; what every receiver takes at least is far less, what rsyslog takes by default is this
	defaultFacility = 16
	// enterprise is the number in the structured data's name; 32473 is reserved for those without one of their own (RFC 5612).
	enterprise = "32473"
)

func (s *Syslog) check() error {
	switch s.Network {
	case "udp", "tcp":
		if _, port, err := net.SplitHostPort(s.Address); err != nil || port == "" {
			return invalid("syslog: %.200q is not host:port", s.Address)
		}
	case "unix":
		if !filepath.IsAbs(s.Address) {
			return invalid("syslog: %.200q is not a socket's full path", s.Address)
		}
	default:
		return invalid("syslog: the network %.80q is none of udp, tcp and unix", s.Network)
	}
	if s.Facility < 0 || s.Facility > 23 {
		return invalid("syslog: the facility %d is not 0 to 23", s.Facility)
	}
	if s.Hostname != printable(s.Hostname, 255) && s.Hostname != "" {
		return invalid("syslog: %.80q is not a host name", s.Hostname)
	}
	return nil
}

func (s *Syslog) send(ctx context.Context, v env, m *Message, _ []string) ([]string, error) {
	op := "log to " + s.Address
	line := s.format(m)
	network := s.Network
	if network == "unix" {
		network = "unixgram"
	}
	conn, err := v.dial(ctx, network, s.Address)
	if err != nil && network == "unixgram" { // a stream socket
		network = "unix"
		conn, err = v.dial(ctx, network, s.Address)
	}
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Offline, op, "%w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if network == "tcp" || network == "unix" {
		line = append([]byte(strconv.Itoa(len(line))+" "), line...)
	}
	if _, err := conn.Write(line); err != nil {
		_ = conn.Close() // the message is not out; that is the error
		return nil, holdfast.Errorf(holdfast.Offline, op, "%w", err)
	}
	if err := conn.Close(); err != nil {
		return nil, holdfast.Errorf(holdfast.Offline, op, "%w", err)
	}
	return nil, nil
}

// format returns the message in RFC 5424's form.
func (s *Syslog) format(m *Message) []byte {
	facility := s.Facility
	if facility == 0 {
		facility = defaultFacility
	}
	severity := map[holdfast.Severity]int{holdfast.Info: 6, holdfast.Warning: 4, holdfast.Alarm: 1}[m.Severity]
	if m.State == Cleared {
		severity = 5 // notice
	}
	host := s.Hostname
	if host == "" {
		host, _ = os.Hostname()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "<%d>1 %s %s holdfast - %s [holdfast@%s", facility*8+severity, m.Time.UTC().Format("2006-01-02T15:04:05.000000Z"),
		dash(printable(host, 255)), dash(printable(string(m.Type), 32)), enterprise)
	param := func(name, value string) {
		if value == "" || b.Len() > maxSyslog/2 { // the text below is worth more than the last fields
			return
		}
		value = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`).Replace(clipText(value, 1000))
		fmt.Fprintf(&b, ` %s="%s"`, name, strings.Map(dropControl, value))
	}
	param("id", m.ID)
	param("severity", m.Severity.String())
	param("alarm", m.Alarm)
	param("state", string(m.State))
	param("site", m.Site)
	for _, name := range slices.Sorted(maps.Keys(m.Fields)) {
		if n := sdName(name); n != "" {
			param(n, m.Fields[name])
		}
	}
	b.WriteString("] \xEF\xBB\xBF") // what follows is UTF-8
	b.WriteString(strings.Map(dropControl, strings.ReplaceAll(m.Title, "\n", " ")))
	if text := strings.TrimSpace(m.Text); text != "" && !strings.HasSuffix(m.Title, oneLine(text)) {
		b.WriteString(" | " + strings.Map(dropControl, strings.ReplaceAll(text, "\n", " | ")))
	}
	return []byte(clipText(b.String(), maxSyslog-len("…")))
}

func dropControl(r rune) rune {
	if r < ' ' || r == 0x7f {
		return -1
	}
	return r
}

// printable keeps RFC 5424's PRINTUSASCII of s.
func printable(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
	return s[:min(len(s), limit)]
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// sdName makes a field's name fit for structured data; fields take f_ before a name that the message itself has.
func sdName(s string) string {
	s = printable(strings.NewReplacer("=", "", `"`, "", "]", "").Replace(s), 30)
	if slices.Contains([]string{"id", "severity", "alarm", "state", "site"}, s) {
		s = "f_" + s
	}
	return s
}
