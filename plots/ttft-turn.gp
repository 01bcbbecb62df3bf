# TTFT by turn of the conversation. A longer conversation has a longer prefix that a cache can hold.
# Data: a block per row; columns: turn, median, 10th percentile, 90th percentile (ms).
set xlabel 'turn of the conversation' textcolor rgb ink
set ylabel 'time to first token (ms)' textcolor rgb ink
set yrange [0:*]
set xtics 1
set style fill transparent solid 0.18 noborder
plot for [i=1:n] dat index i-1 using 1:3:4 with filledcurves lc rgb colour[i], \
     for [i=1:n] dat index i-1 using 1:2 with linespoints lw 2 pt 7 ps 0.5 lc rgb colour[i] title label[i]
