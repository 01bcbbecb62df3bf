# Writes a C file with the text of the given files, for asset_text() of harness/report/asset.h:
# cmake -DOUT=FILE.c -DFILES=a.gp,b.css -P embed.cmake
string(REPLACE "," ";" FILES "${FILES}")
set(text "/* Made by harness/report/embed.cmake. */\n#include \"harness/report/asset.h\"\n\n#include <stddef.h>\n#include <string.h>\n\n")
set(table "")
foreach(file ${FILES})
  get_filename_component(name ${file} NAME)
  string(MAKE_C_IDENTIFIER ${name} id)
  file(READ ${file} hex HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  string(APPEND text "static const char a_${id}[] = {${bytes}0};\n")
  string(APPEND table "    if (!strcmp(name, \"${name}\"))\n        return a_${id};\n")
endforeach()
file(WRITE ${OUT} "${text}\nconst char *asset_text(const char *name)\n{\n${table}    return NULL;\n}\n")
