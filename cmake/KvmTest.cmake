# kvm_test(NAME [TIMEOUT s] SOURCES a.c ... LIBS x y ...) adds a cmocka program and its ctest entry. The default timeout
# is 120 s. Tests find committed data under the macro KVM_SOURCE_DIR, and optional data in the folder that the
# environment variable KVM_DATA names (base/test/test.h).
function(kvm_test name)
  cmake_parse_arguments(T "" "TIMEOUT" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${T_SOURCES})
  target_link_libraries(${name} PRIVATE ${T_LIBS} PkgConfig::CMOCKA)
  target_compile_definitions(${name} PRIVATE KVM_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  add_test(NAME ${name} COMMAND ${name})
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 120)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${T_TIMEOUT})
endfunction()
