#include "philox.cuh"
