package scsi

import "fmt"

// Log pages.
const (
	LogTapeAlert         = 0x2e // reading it clears the flags
	LogTapeAlertResponse = 0x12 // the same flags, not cleared; many devices do not have it
	LogDeviceStatus      = 0x11
	LogLen               = 8192
)

// A Param is one parameter of a log page.
type Param struct {
	Code  uint16
	Value []byte
}

// ParseLog reads a log page and checks that it is the one.
func ParseLog(page byte, b []byte) ([]Param, error) {
	const op = "read log page"
	if len(b) < 4 || b[0]&0x3f != page {
		return nil, corrupt(op, "not page %02xh", page)
	}
	b = b[4:min(len(b), 4+int(be.Uint16(b[2:])))]
	var out []Param
	for len(b) >= 4 {
		n := 4 + int(b[3])
		if n > len(b) {
			return out, corrupt(op, "a parameter of %d bytes in %d", n, len(b))
		}
		out = append(out, Param{be.Uint16(b), b[4:n]})
		b = b[n:]
	}
	return out, nil
}

// An Alert is a number of a TapeAlert flag, 1 to 64.
type Alert uint8

// Alerts that something is done about.
const (
	AlertReadWarning   Alert = 1
	AlertWriteWarning  Alert = 2
	AlertHardError     Alert = 3
	AlertMedia         Alert = 4
	AlertReadFailure   Alert = 5
	AlertWriteFailure  Alert = 6
	AlertMediaLife     Alert = 7
	AlertWriteProtect  Alert = 9
	AlertMemoryChip    Alert = 15
	AlertCleanNow      Alert = 20
	AlertCleanPeriodic Alert = 21
	AlertCleanExpired  Alert = 22
	AlertCleanInvalid  Alert = 23
	AlertHardwareA     Alert = 30
	AlertHardwareB     Alert = 31
	AlertEject         Alert = 34
	AlertMediaFailed   Alert = 51
	AlertDirectory     Alert = 18
)

var alertNames = map[Alert]string{AlertReadWarning: "read warning", AlertWriteWarning: "write warning", AlertHardError: "hard error",
	AlertMedia: "medium at risk", AlertReadFailure: "read failure", AlertWriteFailure: "write failure", AlertMediaLife: "medium at the end of its life",
	AlertWriteProtect: "write protected", AlertMemoryChip: "memory chip of the cartridge failed", AlertDirectory: "tape directory corrupted", AlertCleanNow: "clean now",
	AlertCleanPeriodic: "clean soon", AlertCleanExpired: "cleaning cartridge used up", AlertCleanInvalid: "not a valid cleaning cartridge",
	AlertHardwareA: "hardware failure, reset needed", AlertHardwareB: "hardware failure", AlertEject: "eject failed", AlertMediaFailed: "medium failed to load"}

// String returns the flag's words.
func (a Alert) String() string {
	if n := alertNames[a]; n != "" {
		return n
	}
	return fmt.Sprintf("TapeAlert %d", uint8(a))
}

// ParseAlerts reads the flags that are set from either TapeAlert page.
func ParseAlerts(page byte, b []byte) ([]Alert, error) {
	ps, err := ParseLog(page, b)
	if err != nil {
		return nil, err
	}
	var out []Alert
	for _, p := range ps {
		switch {
		case page == LogTapeAlert && p.Code >= 1 && p.Code <= 64 && len(p.Value) > 0 && p.Value[0]&1 != 0:
			out = append(out, Alert(p.Code))
		case page == LogTapeAlertResponse && p.Code == 0 && len(p.Value) >= 8:
			flags := be.Uint64(p.Value)
			for i := range 64 { // flag 1 is the highest bit
				if flags&(1<<(63-i)) != 0 {
					out = append(out, Alert(i+1))
				}
			}
		}
	}
	return out, nil
}

// EncodeLog is the inverse of ParseLog, for emulators.
func EncodeLog(page byte, ps []Param) []byte {
	b := []byte{page, 0, 0, 0}
	for _, p := range ps {
		b = be.AppendUint16(b, p.Code)
		b = append(append(b, 0x03, byte(len(p.Value))), p.Value...)
	}
	be.PutUint16(b[2:], uint16(len(b)-4))
	return b
}
