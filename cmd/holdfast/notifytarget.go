package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/notify"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

const targetHelp = `What each kind takes by --set NAME=VALUE (lists: say it again):
  mail     host from to... port security(starttls|tls|plain) user password_file auth hello ca
  webhook  url key_file token_file template content_type ca
  ntfy     url topic token_file ca
  gotify   url token_file ca
  syslog   network(udp|tcp|unix) address facility hostname
A secret is best kept in a file that the appliance reads: password_file=/etc/holdfast/mail.password. --secret NAME reads it from
standard input instead and the appliance keeps it, sealed. On the command line secrets are refused: other users can see it.
One rule can be said with --severity, --type, --field, --window; for more, and for rules that take away, write the target as JSON, as
'target show' prints it, and use --file.
`

// targetFlags are the flags by which a target is made or changed.
type targetFlags struct {
	kind, file, secret, severity, digest, flood string
	set, types, fields, windows                 []string
	disabled, enabled                           bool
}

func (f *targetFlags) register(c *cobra.Command) {
	fl := c.Flags()
	fl.StringArrayVar(&f.set, "set", nil, "NAME=VALUE of the kind, see above")
	fl.StringVar(&f.secret, "secret", "", "read this secret (password, key or token) from standard input")
	fl.StringVar(&f.file, "file", "", "read the whole target as JSON from this file; -: standard input")
	fl.StringVar(&f.severity, "severity", "", "tell only what is at least info, warning or alarm")
	fl.StringArrayVar(&f.types, "type", nil, "tell only of types of events that match, like 'run-*'")
	fl.StringArrayVar(&f.fields, "field", nil, "tell only where a field matches, like 'vm=sql*'")
	fl.StringArrayVar(&f.windows, "window", nil, "tell only of what happens then, like 'mon-fri 08:00-18:00'")
	fl.StringVar(&f.digest, "digest", "", "collect what is no alarm and send it daily at this time, like 07:00; off: no digest")
	fl.StringVar(&f.flood, "flood", "", "at most so many messages in so many minutes, like 20/10, then one summary")
	fl.BoolVar(&f.disabled, "disable", false, "tell it nothing")
	fl.BoolVar(&f.enabled, "enable", false, "tell it again")
}

func (a *app) targetAdd() *cobra.Command {
	var f targetFlags
	c := &cobra.Command{
		Use: "add NAME --kind KIND --set NAME=VALUE...", Short: "Add a target", Args: cobra.ExactArgs(1), Long: "Add a target.\n\n" + targetHelp + "\n" + cli.ExitHelp,
		RunE: func(c *cobra.Command, args []string) error {
			raw := map[string]any{}
			if f.kind != "" {
				raw[f.kind] = map[string]any{}
			}
			t, err := a.edit(raw, &f)
			if err != nil {
				return err
			}
			t.Name = args[0]
			body, err := inClear(t)
			if err != nil {
				return err
			}
			var out notify.Target
			if err := a.call(c.Context(), "POST", notifyPath+"/targets", body, &out); err != nil {
				return err
			}
			return a.print(out, func(p *printer) {
				p.line("Target %s is added; next: holdfast notify target test %s", cli.Clean(out.Name), cli.Clean(out.Name))
			})
		},
	}
	c.Flags().StringVar(&f.kind, "kind", "", "mail, webhook, ntfy, gotify or syslog")
	f.register(c)
	return c
}

func (a *app) targetSet() *cobra.Command {
	var f targetFlags
	c := &cobra.Command{
		Use: "set NAME", Short: "Change a target; what is not named stays", Args: cobra.ExactArgs(1), Long: "Change a target. What is not named stays.\n\n" + targetHelp + "\n" + cli.ExitHelp,
		RunE: func(c *cobra.Command, args []string) error {
			var raw map[string]any
			if err := a.call(c.Context(), "GET", targetPath(args[0]), nil, &raw); err != nil {
				return err
			}
			delete(raw, "$schema")
			t, err := a.edit(raw, &f)
			if err != nil {
				return err
			}
			t.Name = args[0]
			body, err := inClear(t)
			if err != nil {
				return err
			}
			var out notify.Target
			if err := a.call(c.Context(), "PUT", targetPath(args[0]), body, &out); err != nil {
				return err
			}
			return a.showTarget(out)
		},
	}
	f.register(c)
	return c
}

// inClear is a target as the API takes it: to the socket only, where its secrets have to go.
func inClear(t notify.Target) (map[string]any, error) {
	var raw map[string]any
	b, err := json.Marshal(t)
	if err == nil {
		err = json.Unmarshal(b, &raw)
	}
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, "send target", "%w", err)
	}
	_, part := kindOf(raw)
	for _, s := range t.Reveal() {
		part[s.Name] = s.Value
	}
	return raw, nil
}

// edit applies the flags to a target as JSON.
func (a *app) edit(raw map[string]any, f *targetFlags) (t notify.Target, err error) {
	if f.file != "" {
		if raw, err = a.readJSON(f.file); err != nil {
			return t, err
		}
	}
	kind, part := kindOf(raw)
	if kind == "" {
		return t, usage("say with --kind what the target is: mail, webhook, ntfy, gotify or syslog")
	}
	for _, s := range f.set {
		if err := setField(kind, part, s); err != nil {
			return t, err
		}
	}
	if f.secret != "" {
		if f.file == "-" {
			return t, usage("--secret and --file - both want standard input")
		}
		if part[f.secret], err = a.readLine(); err != nil {
			return t, err
		}
		delete(part, f.secret+"_file")
	}
	if err := f.general(raw); err != nil {
		return t, err
	}
	raw["name"] = "target" // its own comes later; Unseal does not mind
	b, err := json.Marshal(raw)
	if err != nil {
		return t, holdfast.Errorf(holdfast.Internal, "read target", "%w", err)
	}
	return notify.Unseal(b)
}

func kindOf(raw map[string]any) (string, map[string]any) {
	for _, kind := range []string{"mail", "webhook", "ntfy", "gotify", "syslog"} {
		if part, ok := raw[kind].(map[string]any); ok {
			return kind, part
		}
	}
	return "", nil
}

func usage(format string, args ...any) error {
	return holdfast.Errorf(holdfast.Invalid, "", format, args...).Advise("'holdfast notify target add --help' shows how to use it")
}

// setField sets one field of a kind. Lists begin anew with the first value of a command line and grow with each that follows.
func setField(kind string, part map[string]any, s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		return usage("--set %q is not NAME=VALUE", s)
	}
	switch {
	case name == "password" || name == "token" || name == "key":
		return usage("a secret on the command line can be seen by other users: use --secret %s, or --set %s_file=PATH", name, name)
	case kind == "mail" && name == "to":
		list, _ := part["to"].([]string) // what came from the appliance is []any and is replaced
		part["to"] = append(list, value)
	case name == "port" || name == "facility":
		n, err := strconv.Atoi(value)
		if err != nil {
			return usage("%s: %q is not a number", name, value)
		}
		part[name] = n
	case name == "ca" && !strings.Contains(value, "-----BEGIN"):
		pem, err := os.ReadFile(value)
		if err != nil {
			return holdfast.Errorf(holdfast.Invalid, "read certificate", "%w", err).Advise("--set ca=FILE names a PEM file on this machine")
		}
		part[name] = string(pem)
	case value == "":
		delete(part, name)
	default:
		part[name] = value
		if secret, ok := strings.CutSuffix(name, "_file"); ok {
			delete(part, secret)
		}
	}
	return nil
}

// general applies the flags that every kind has.
func (f *targetFlags) general(raw map[string]any) error {
	rule := map[string]any{}
	if f.severity != "" {
		rule["severity"] = f.severity
	}
	if len(f.types) > 0 {
		rule["types"] = f.types
	}
	if len(f.windows) > 0 {
		rule["windows"] = f.windows
	}
	fields := map[string]string{}
	for _, s := range f.fields {
		name, value, ok := strings.Cut(s, "=")
		if !ok {
			return usage("--field %q is not NAME=PATTERN", s)
		}
		fields[name] = value
	}
	if len(fields) > 0 {
		rule["fields"] = fields
	}
	if len(rule) > 0 {
		raw["rules"] = []any{rule}
	}
	switch f.digest {
	case "":
	case "off":
		delete(raw, "digest")
	default:
		raw["digest"] = map[string]any{"at": f.digest}
	}
	if f.flood != "" {
		var most, minutes int
		if _, err := fmt.Sscanf(f.flood, "%d/%d", &most, &minutes); err != nil {
			return usage("--flood %q is not MESSAGES/MINUTES", f.flood)
		}
		raw["flood"] = map[string]any{"max": most, "minutes": minutes}
	}
	if f.disabled && f.enabled {
		return usage("--disable and --enable contradict each other")
	}
	if f.disabled {
		raw["disabled"] = true
	}
	if f.enabled {
		delete(raw, "disabled")
	}
	return nil
}

const maxInput = 1 << 20 // bytes of a file that a command reads whole

// readInput reads a file, or standard input for -.
func (a *app) readInput(name string) ([]byte, error) {
	in := a.in
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, holdfast.Errorf(holdfast.Invalid, "read file", "%w", err).Advise("is the path right?")
		}
		defer f.Close() // it was only read
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxInput+1))
	if err == nil && len(b) > maxInput {
		err = fmt.Errorf("%s is longer than %d bytes", name, maxInput)
	}
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Invalid, "read file", "%w", err).Advise("is it the right file?")
	}
	return b, nil
}

func (a *app) readJSON(name string) (map[string]any, error) {
	b, err := a.readInput(name)
	if err != nil {
		return nil, err
	}
	var raw map[string]any
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&raw); err != nil {
		return nil, holdfast.Errorf(holdfast.Invalid, "read target", "%s: %w", name, err).Advise("write it as 'holdfast notify target show' prints one")
	}
	return raw, nil
}

// readLine reads a secret from standard input.
func (a *app) readLine() (string, error) {
	if terminal(a.in) {
		fmt.Fprint(a.errw, "secret (it shows as you type; better pipe it in): ")
	}
	line, err := bufio.NewReader(io.LimitReader(a.in, 64<<10)).ReadString('\n')
	line = strings.TrimRight(line, "\r\n")
	if err != nil && err != io.EOF || line == "" {
		return "", usage("there is no secret on standard input")
	}
	return line, nil
}

func targetJSON(t notify.Target) (string, error) {
	b, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return "", holdfast.Errorf(holdfast.Internal, "print", "%w", err)
	}
	return string(b), nil
}
