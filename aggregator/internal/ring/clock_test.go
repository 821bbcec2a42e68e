package ring

import "testing"

// Times of flushes every 5 s, as they were sent and as they arrived, in tenths of a second.
func TestRowTimes(t *testing.T) {
	type flush struct{ timestamp, arrival, want int64 }
	for name, flushes := range map[string][]flush{
		"in time":                                    {{1000, 11000, 11000}, {1050, 11050, 11050}, {1100, 11120, 11100}, {1150, 11150, 11150}},
		"held up, then all at once":                  {{1000, 11000, 11000}, {1050, 11200, 11050}, {1100, 11200, 11100}, {1150, 11200, 11150}, {1200, 11200, 11200}, {1250, 11250, 11250}},
		"held up, in several rows":                   {{1000, 11000, 11000}, {1050, 11200, 11050}, {1050, 11200, 11050}, {1100, 11200, 11100}, {1100, 11201, 11100}, {1150, 11201, 11150}},
		"the clock is set back":                      {{1000, 11000, 11000}, {750, 11050, 11050}, {800, 11100, 11100}},
		"the clock is set forward":                   {{1000, 11000, 11000}, {1650, 11050, 11050}, {1700, 11100, 11100}},
		"set back while it was away":                 {{1000, 11000, 11000}, {1300, 11600, 11300}, {1350, 11650, 11650}, {1400, 11700, 11700}},
		"set back by less than a flush":              {{1000, 11000, 11000}, {1050, 11050, 11050}, {1051, 11100, 11100}, {1101, 11150, 11150}},
		"set back by a tenth of a flush and more":    {{1000, 11000, 11000}, {1050, 11050, 11050}, {1090, 11100, 11100}, {1140, 11150, 11150}},
		"set forward by less than a flush":           {{1000, 11000, 11000}, {1050, 11050, 11050}, {1149, 11100, 11100}, {1199, 11150, 11150}},
		"late by less than a flush":                  {{1000, 11000, 11000}, {1050, 11070, 11050}, {1100, 11100, 11100}},
		"late by less than a flush, again and again": {{1000, 11000, 11000}, {1050, 11070, 11050}, {1100, 11120, 11100}, {1150, 11170, 11150}, {1200, 11200, 11200}},
		"set back by less than a flush while it was away": {
			{1000, 11000, 11000}, {1080, 11120, 11080}, {1130, 11170, 11130}, {1180, 11220, 11180}, {1230, 11270, 11230}, {1280, 11320, 11280}, {1330, 11370, 11370}, {1380, 11420, 11420},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var c Clock
			for i, f := range flushes {
				if got, _, _ := c.Row(Stamp(f.timestamp*100), f.arrival*100, 5000, 5000); got != f.want*100 {
					t.Errorf("flush %d: %d ms, want %d", i, got, f.want*100)
				}
			}
		})
	}
}
