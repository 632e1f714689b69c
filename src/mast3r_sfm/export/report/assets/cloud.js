// The points of one photo, as `export/report/points.py` packs them: uint16 positions in their box, uint8 colours, uint8
// levels of confidence. The graphics card reads them as they are; the box is the object's own matrix.

const POINT_VERTEX = `
  attribute vec3 colour;
  attribute float level;
  uniform float threshold, size, pixels;  // pixels: height of the view over twice the tangent of half its angle
  uniform vec3 eye;
  uniform float pitch;
  varying vec3 shown;
  varying float diameter;
  void main() {
    shown = colour;
    vec4 world = modelMatrix * vec4(position, 1.0);
    vec4 place = viewMatrix * world;
    // as large as the gap to its neighbours, which grows with the distance from the camera that saw it
    float wanted = size * pitch * distance(world.xyz, eye) * pixels / max(-place.z, 1e-6);
    diameter = clamp(wanted, 1.5, 48.0);
    gl_PointSize = diameter;
    gl_Position = level < threshold ? vec4(2.0, 2.0, 2.0, 1.0) : projectionMatrix * place;
  }`;

const POINT_FRAGMENT = `
  varying vec3 shown;
  varying float diameter;
  void main() {
    vec2 place = gl_PointCoord - 0.5;
    if (diameter > 3.0 && dot(place, place) > 0.25) discard;
    gl_FragColor = vec4(shown, 1.0);
  }`;

class PointChunk {
  // shared: uniforms that all chunks have in common
  constructor(described, buffer, shared) {
    Object.assign(this, described); // view, count, offset, scale, eye, pitch
    this.positions = new Uint16Array(buffer, 0, 3 * this.count);
    this.colours = new Uint8Array(buffer, 6 * this.count, 3 * this.count);
    this.levels = new Uint8Array(buffer, 9 * this.count, this.count);
    const geometry = new THREE.BufferGeometry();
    geometry.setAttribute("position", new THREE.BufferAttribute(this.positions, 3));
    geometry.setAttribute("colour", new THREE.BufferAttribute(this.colours, 3, true));
    geometry.setAttribute("level", new THREE.BufferAttribute(this.levels, 1));
    geometry.boundingSphere = new THREE.Sphere(new THREE.Vector3(32768, 32768, 32768), 32768 * Math.sqrt(3));
    const material = new THREE.ShaderMaterial({
      vertexShader: POINT_VERTEX,
      fragmentShader: POINT_FRAGMENT,
      uniforms: { ...shared, eye: { value: new THREE.Vector3(...this.eye) }, pitch: { value: this.pitch } },
    });
    this.object = new THREE.Points(geometry, material);
    this.object.position.set(...this.offset);
    this.object.scale.set(...this.scale);
    this.object.updateMatrixWorld();
    this.object.matrixAutoUpdate = false;
    this.histogram = new Uint32Array(256);
    for (const level of this.levels) this.histogram[level]++;
  }

  // Draws only a share of the points; they stand in random order, so any first part shows all of the surface.
  setShare(share) {
    this.object.geometry.setDrawRange(0, share >= 1 ? Infinity : Math.ceil(share * this.count));
  }

  position(k) {
    return new THREE.Vector3(
      this.offset[0] + this.scale[0] * this.positions[3 * k],
      this.offset[1] + this.scale[1] * this.positions[3 * k + 1],
      this.offset[2] + this.scale[2] * this.positions[3 * k + 2],
    );
  }

  // The points drawn within `reach` pixels of (x, y) in a view of (width, height): [{k, depth, away, under}], `under`
  // if the point covers that place. `pixels` as in the shader, `width` and `height` in the same pixels.
  near(camera, x, y, width, height, threshold, size, pixels, reach) {
    const matrix = new THREE.Matrix4().multiplyMatrices(camera.projectionMatrix, camera.matrixWorldInverse);
    const e = matrix.multiply(this.object.matrixWorld).elements;
    const { positions, levels, scale, offset, eye, pitch } = this;
    const found = [];
    for (let k = 0; k < this.count; k++) {
      if (levels[k] < threshold) continue;
      const a = positions[3 * k], b = positions[3 * k + 1], c = positions[3 * k + 2];
      const depth = e[3] * a + e[7] * b + e[11] * c + e[15];
      if (depth <= camera.near) continue;
      const dx = ((e[0] * a + e[4] * b + e[8] * c + e[12]) / depth * 0.5 + 0.5) * width - x;
      if (dx > reach || dx < -reach) continue;
      const dy = (0.5 - (e[1] * a + e[5] * b + e[9] * c + e[13]) / depth * 0.5) * height - y;
      const away = Math.hypot(dx, dy);
      if (away > reach) continue;
      const fromEye = Math.hypot(
        offset[0] + scale[0] * a - eye[0], offset[1] + scale[1] * b - eye[1], offset[2] + scale[2] * c - eye[2]);
      const radius = Math.max(1.5, size * pitch * fromEye * pixels / depth / 2);
      found.push({ k, depth, away, under: away <= radius });
    }
    return found;
  }
}
