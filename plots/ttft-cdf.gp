# Cumulative distribution of TTFT: the share of requests whose first token had arrived by that time.
# Data: a block per row; columns: TTFT in ms, share of requests.
set logscale x
set xlabel 'time to first token (ms), logarithmic' textcolor rgb ink
set ylabel 'share of requests' textcolor rgb ink
set yrange [0:1]
plot for [i=1:n] dat index i-1 using 1:2 with steps lw 2 lc rgb colour[i] title label[i]
