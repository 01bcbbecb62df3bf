# A point per run, and the mean of each row as a dashed line: how much runs with the same options differ.
# Data: a block per row; columns: repeat, figure. Variables: unit (label of the y axis), last (number of repeats).
set xlabel 'repeat' textcolor rgb ink
set ylabel unit textcolor rgb ink
set yrange [0:*]
set xrange [0.5:last+0.5]
set xtics 1
array mean[n]
do for [i=1:n] { # a row without a run has no mean
    undefine STATS_*
    stats dat index i-1 using 2 nooutput
    mean[i] = exists('STATS_mean') ? STATS_mean : NaN
}
plot for [i=1:n] mean[i] with lines lw 1 dt 2 lc rgb colour[i], \
     for [i=1:n] dat index i-1 using 1:2 with points pt 7 ps 0.9 lc rgb colour[i] title label[i]
