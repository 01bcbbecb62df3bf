# gnuplot multi-turn-repeats.gp makes multi-turn-repeats.svg from multi-turn-repeats.dat
dat = 'multi-turn-repeats.dat'
out = 'multi-turn-repeats.svg'
n = 2
array label[2] = ['Without KV cache layer', 'With KV cache layer (DRAM)']
unit = 'Input TPS'
last = 3

# Shared by every plot. Colours are Okabe and Ito's, safe for the colour-blind; the first row of a table is always
# the first one. The grey of lines and text becomes the page's own colour where a plot is put into one.
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

# Each run as a point, the mean of a row as a line: what changes between runs that ask the same. Columns: repeat, figure.
set xlabel 'repeat' textcolor rgb ink
set ylabel unit textcolor rgb ink
set yrange [0:*]
set xrange [0.5:last+0.5]
set xtics 1
array mean[n]
do for [i=1:n] { stats dat index i-1 using 2 nooutput; mean[i] = STATS_mean }
plot for [i=1:n] mean[i] with lines lw 1 dt 2 lc rgb colour[i], \
     for [i=1:n] dat index i-1 using 1:2 with points pt 7 ps 0.9 lc rgb colour[i] title label[i]
