# gnuplot miss-repeats.gp makes miss-repeats.svg from miss-repeats.dat
dat = 'miss-repeats.dat'
out = 'miss-repeats.svg'
n = 2
array label[2] = ['Without KV cache layer', 'With KV cache layer (DRAM)']
unit = 'Output TPS'
last = 3

# Shared by all plots. The script of a plot sets before this: dat and out (names of its files), n (number of series) and
# label (array of their names). The colours are those of Okabe and Ito, which colour-blind readers can tell apart. The
# colour `ink` of lines and text becomes the colour of the page when the picture is put into report.html.
set terminal svg size 720,400 dynamic noenhanced font 'sans-serif,13'
array colour[7] = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#7F7F7F']
ink = '#333333'
set output out
set encoding utf8
set border 3 lc rgb ink lw 1
set tics nomirror textcolor rgb ink
set grid lc rgb '#999999' lw 0.4 dt (1,3)
set xlabel textcolor rgb ink
set ylabel textcolor rgb ink
set key above left horizontal reverse Left textcolor rgb ink noautotitle

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
